// Two answers side by side: A, B, or a tie.
import { conversation } from "./content.js";
import { el, say } from "./dom.js";
import { answerCard } from "./parts.js";
import { t } from "./words.js";

const KEYS = {
  ArrowLeft: "A",
  ArrowRight: "B",
  ArrowDown: "tie",
  ArrowUp: "tie",
  a: "A",
  b: "B",
  t: "tie",
  1: "A",
  2: "B",
  0: "tie",
};

export function compareTask(task, { draft, changed }) {
  let better = ["A", "B", "tie"].includes(draft?.better) ? draft.better : undefined;
  const cards = task.answers.map((answer) => answerCard(answer));
  const error = el("p", { class: "problem", id: "missing-better" });
  const buttons = ["A", "tie", "B"].map((value) =>
    el(
      "button",
      { type: "button", class: "choice", "data-value": value, onclick: () => choose(value) },
      el("b", { text: t(`compare.${value}`) }),
      el("kbd", { "aria-hidden": "true", text: t(`compare.key_${value}`) }),
    ),
  );
  const group = el(
    "div",
    { class: "choices-row", role: "group", "aria-label": t("compare.which"), "aria-describedby": error.id },
    ...buttons,
  );

  function sync() {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === better));
    task.answers.forEach(({ key }, i) => cards[i].classList.toggle("chosen", key === better || better === "tie"));
    if (better !== undefined) error.textContent = "";
  }

  function choose(value) {
    better = value;
    sync();
    changed();
  }

  function byKey(event) {
    const value = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (value === undefined || event.shiftKey) return false;
    choose(value);
    // Enter presses the button that has the focus: it must not be another one than the chosen.
    if (group.contains(document.activeElement)) buttons.find((button) => button.dataset.value === value).focus();
    say(t("say.chosen", { choice: t(`compare.${value}`) }));
    return true;
  }

  function missing() {
    if (better !== undefined) return null;
    error.textContent = t("compare.missing");
    return { words: t("compare.missing"), focus: () => buttons[0].focus() };
  }

  sync();
  const title = el("h2", { class: "part", id: "answers-title", text: t("content.answers") });
  const answers = el(
    "section",
    { "aria-labelledby": "answers-title" },
    title,
    el("div", { class: "cards of-2" }, ...cards),
  );
  const main = el(
    "div",
    { class: "stage" },
    conversation(task.prompt),
    answers,
    el("div", { class: "verdict" }, group, error),
  );
  return { main, reply: () => (better === undefined ? {} : { better }), missing, byKey, enterSubmits: true };
}
