// What several tasks have: an answer as a card, scales of native radio buttons, flags, the note.
import { readable } from "./content.js";
import { el } from "./dom.js";
import { known, t } from "./words.js";

let names = 0;

// A row of radio buttons. `low` and `high` are the words at its ends; `set(value or undefined)` is called on changes.
export function scale({ legend, of, from, to, low, high, set, describedby, big = false }) {
  const name = `scale-${++names}`;
  const inputs = [];
  for (let value = from; value <= to; value += 1) {
    inputs.push(el("input", { type: "radio", name, value: String(value), onchange: () => changed(value) }));
  }
  const labels = inputs.map((input) => el("label", {}, input, el("span", { text: input.value })));
  const clear = el("button", { type: "button", class: "clear", text: t("scale.clear"), onclick: () => cleared() });
  clear.append(el("span", { class: "unseen", text: ` ${legend} ${of}` }));
  const element = el(
    "fieldset",
    { class: big ? "scale big" : "scale", "aria-describedby": describedby },
    el("legend", {}, legend, el("span", { class: "unseen", text: ` ${of}: ${from} ${low}, ${to} ${high}` })),
    el(
      "div",
      { class: "scale-row" },
      el("span", { class: "end", "aria-hidden": "true", text: low }),
      el("div", { class: "steps" }, ...labels),
      el("span", { class: "end", "aria-hidden": "true", text: high }),
    ),
    clear,
  );
  function changed(value) {
    show(value);
    set(value);
  }
  function cleared() {
    changed(undefined);
    inputs[0].focus();
  }
  function show(value) {
    for (const input of inputs) input.checked = Number(input.value) === value;
    element.classList.toggle("set", value !== undefined);
  }
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Backspace" && event.key !== "Delete") return;
    event.preventDefault();
    changed(undefined);
  });
  return { element, show, focus: () => (inputs.find((input) => input.checked) ?? inputs[0]).focus() };
}

const flagName = (flag) => (known(`flag.${flag}`) ? t(`flag.${flag}`) : flag.replaceAll("_", " "));
const flagHint = (flag) => (known(`flag_hint.${flag}`) ? t(`flag_hint.${flag}`) : "");

// A constraint is kept, broken, or there was none: three states, where the other flags are set or not.
const CONSTRAINT = "satisfies_constraint";

function constraint(values, of, changed) {
  const name = `constraint-${++names}`;
  const choices = [
    [undefined, "constraint.none"],
    [true, "constraint.kept"],
    [false, "constraint.broken"],
  ];
  const labels = choices.map(([value, key]) => {
    const input = el("input", { type: "radio", name, onchange: () => changed(CONSTRAINT, value) });
    input.checked = values[CONSTRAINT] === value;
    return el("label", {}, input, el("span", { text: t(key) }));
  });
  const legend = el("legend", {}, t("constraint.name"), el("span", { class: "unseen", text: ` ${of}` }));
  return el("fieldset", { class: "constraint" }, legend, ...labels);
}

// `values` is {flag: true or false}, changed in place.
export function flagBox(flags, values, of, told) {
  const count = el("span", { class: "count" });
  const show = () => {
    const set = Object.keys(values).length;
    count.textContent = set === 0 ? "" : `, ${t("flags.set", { n: set })}`;
  };
  const changed = (flag, value) => {
    if (value === undefined) delete values[flag];
    else values[flag] = value;
    show();
    told();
  };
  const boxes = flags
    .filter((flag) => flag !== CONSTRAINT)
    .map((flag) => {
      const id = `flag-${++names}`;
      const input = el("input", {
        type: "checkbox",
        id,
        "aria-describedby": `${id}-hint`,
        onchange: (event) => changed(flag, event.target.checked || undefined),
      });
      input.checked = values[flag] === true;
      const words = el(
        "span",
        {},
        el("label", { for: id, text: flagName(flag) }),
        el("small", { id: `${id}-hint`, text: flagHint(flag) }),
      );
      return el("li", {}, input, words);
    });
  show();
  const summary = el("summary", {}, t("flags.name"), el("span", { class: "unseen", text: ` ${of}` }), count);
  const parts = [el("ul", { class: "flags" }, ...boxes)];
  if (flags.includes(CONSTRAINT)) parts.push(constraint(values, of, changed));
  const element = el("details", { class: "fold" }, summary, ...parts);
  element.open = false;
  return element;
}

export function answerCard(answer, ...controls) {
  const of = t("answer.name", { key: answer.key });
  const head = el(
    "div",
    { class: "card-head" },
    el(
      "h3",
      { class: "letter", id: `name-${answer.key}` },
      el("span", { class: "unseen", text: `${t("answer.word")} ` }),
      answer.key,
    ),
  );
  if (!answer.ended) head.append(el("span", { class: "cut", text: t("answer.cut") }));
  return el(
    "article",
    { class: "card", id: `answer-${answer.key}`, tabindex: "-1", "aria-label": of, "data-key": answer.key },
    head,
    readable(answer, answer.ended ? "text" : "text is-cut"),
    el("div", { class: "controls" }, ...controls),
  );
}

// The last field of every task.
export function noteBox(text, told) {
  const area = el("textarea", {
    id: "note",
    rows: "3",
    maxlength: "4000",
    dir: "auto",
    "aria-label": t("note.name"),
    "aria-describedby": "note-hint",
    oninput: () => told(area.value),
  });
  area.value = text;
  const fold = el(
    "details",
    { class: "fold note" },
    el("summary", { text: t("note.name") }),
    el("label", { class: "field" }, el("span", { class: "quiet", id: "note-hint", text: t("note.hint") }), area),
  );
  fold.open = text !== "";
  return fold;
}
