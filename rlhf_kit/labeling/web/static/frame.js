// What is around every task: the note, what is missing, submit, skip and undo.
import { $, alarm, el } from "./dom.js";
import { noteBox } from "./parts.js";
import { t } from "./words.js";

const APPLE = /Mac|iPhone|iPad/.test(navigator.platform);
export const submitKeys = () => (APPLE ? "⌘ Enter" : t("key.ctrl_enter"));

// `view` is what a task's module made; `on` are submit, skip, undo and noted(text).
export function frame(view, { note, canUndo, on }) {
  const problems = el("div", { class: "problems", id: "problems", role: "alert" });
  const submit = el(
    "button",
    { type: "button", class: "primary", id: "submit", "aria-keyshortcuts": "Control+Enter", onclick: on.submit },
    t("do.submit"),
    el("kbd", { "aria-hidden": "true", text: submitKeys() }),
  );
  const skip = el("button", { type: "button", id: "skip", onclick: on.skip, text: t("do.skip") });
  const undo = el("button", { type: "button", id: "undo", onclick: on.undo, text: t("do.undo"), disabled: !canUndo });
  const unsaved = el("p", { class: "problem", id: "unsaved", role: "status" });
  const bar = el("div", { class: "bar" }, problems, unsaved, view.state, el("div", { class: "buttons" }, submit, skip, undo));
  const actions = el("section", { class: "actions", "aria-label": t("do.name") }, noteBox(note, on.noted), bar);
  const aside = el("div", { class: "aside" }, view.side, actions);
  return el("div", { class: view.side ? "sheet with-side" : "sheet" }, view.main, aside);
}

// What keeps the task from being submitted, in words; `lines` may be empty.
export function tellProblems(lines) {
  const place = $("problems");
  if (place) alarm(place, lines);
}

// What keeps a draft from the server; null where nothing does.
export function tellUnsaved(error) {
  const place = $("unsaved");
  if (place) place.textContent = error === null ? "" : t("draft.unsaved", { error: error.message });
}

export function setBusy(busy) {
  for (const id of ["submit", "skip"]) if ($(id)) $(id).disabled = busy;
}
