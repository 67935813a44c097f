// Keys without a field: one key does one thing, and whoever speaks to the page or bumps into keys can turn that off.
import { $, el, isTyping } from "./dom.js";
import { submitKeys } from "./frame.js";
import { t } from "./words.js";

const OFF = "rlhf-kit.keys-off";
let off = read();

function read() {
  try {
    return localStorage.getItem(OFF) === "yes";
  } catch {
    return false;
  }
}

export function prepareSwitch() {
  const box = $("keys-on");
  box.checked = !off;
  box.addEventListener("change", () => {
    off = !box.checked;
    try {
      localStorage.setItem(OFF, off ? "yes" : "no");
    } catch {
      // it holds for this page
    }
  });
}

// What is written with signs has a name in words, `key.*`, for who hears it.
const RANK = [
  ["A–I", "keys.card", "key.letters"],
  ["1–9", "keys.rank", "key.digits"],
  ["0", "keys.clear"],
  ["Alt ↑ ↓", "keys.step", "key.alt_up_down"],
  ["⇧ 1–7", "keys.overall", "key.shift_marks"],
  ["← →", "keys.cards", "key.left_right"],
];
const OWN = {
  rank: RANK,
  compare: [
    ["←", "keys.left", "key.left"],
    ["→", "keys.right", "key.right"],
    ["↓", "keys.tie", "key.down"],
    ["Enter", "keys.submit"],
  ],
  rate: [
    ["1–7", "keys.mark", "key.marks"],
    ["0", "keys.clear"],
    ["Enter", "keys.submit"],
  ],
};

export function fillHelp(kind) {
  const all = [
    ...(OWN[kind] ?? []),
    [submitKeys(), "keys.submit"],
    ["U", "keys.undo"],
    ["S", "keys.skip"],
    ["?", "keys.help", "key.question"],
  ];

  $("help-keys").replaceChildren(
    ...all.flatMap(([keys, does, name]) => [
      name
        ? el("dt", {}, el("kbd", { "aria-hidden": "true", text: keys }), el("span", { class: "unseen", text: t(name) }))
        : el("dt", {}, el("kbd", { text: keys })),
      el("dd", { text: t(does) }),
    ]),
  );
}

// `on`: {view(), submit, undo, skip, help}
export function listen(on) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    if (handled(event, on)) event.preventDefault();
  });
}

function handled(event, on) {
  const view = on.view();
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") return (on.submit(), true);
  if (isTyping(event.target) || event.ctrlKey || event.metaKey) return false;
  if (event.altKey) return view?.byAlt?.(event) ?? false;
  if (off) return false;
  if (event.key === "?") return (on.help(), true);
  if (event.key === "Enter" && view?.enterSubmits && !event.target.closest("button, summary, a, input[type=checkbox]"))
    return (on.submit(), true);
  if (view?.byKey?.(event)) return true;
  const key = event.key.toLowerCase();
  if (key === "u") return (on.undo(), true);
  if (key === "s" && view) return (on.skip(), true);
  return false;
}
