// One answer with a mark from 1 to 7.
import { conversation } from "./content.js";
import { el, say } from "./dom.js";
import { answerCard, flagBox, scale } from "./parts.js";
import { t } from "./words.js";

export function rateTask(task, { me, draft, changed }) {
  const [low, high] = me.scale;
  let overall = draft?.overall ?? undefined;
  const flags = { ...draft?.flags };
  const of = t("answer.this");
  const error = el("p", { class: "problem", id: "missing-overall" });
  const meaning = el("p", { class: "meaning" });
  const marks = scale({
    legend: t("overall.name"),
    of,
    from: low,
    to: high,
    low: t("overall.low"),
    high: t("overall.high"),
    describedby: error.id,
    set: setOverall,
    big: true,
  });
  const card = answerCard(task.answers[0], flagBox(me.flags, flags, of, changed));
  card.classList.add("single");

  function sync() {
    marks.show(overall);
    meaning.textContent = overall === undefined ? t("overall.hint") : t(`overall.${overall}`);
    if (overall !== undefined) error.textContent = "";
  }

  function setOverall(value) {
    overall = value;
    sync();
    changed();
  }

  function byKey(event) {
    const digit = Number(/^(?:Digit|Numpad)([0-9])$/.exec(event.code)?.[1]);
    if (event.shiftKey || Number.isNaN(digit) || (digit !== 0 && (digit < low || digit > high))) return false;
    setOverall(digit === 0 ? undefined : digit);
    say(digit === 0 ? t("say.cleared") : t("say.mark", { mark: digit, meaning: t(`overall.${digit}`) }));
    return true;
  }

  function missing() {
    if (overall !== undefined) return null;
    error.textContent = t("rate.missing");
    return { words: t("rate.missing"), focus: marks.focus };
  }

  sync();
  const title = el("h2", { class: "part", id: "answers-title", text: t("content.answer") });
  const answer = el("section", { "aria-labelledby": "answers-title" }, title, card);
  const main = el(
    "div",
    { class: "stage" },
    conversation(task.prompt),
    answer,
    el("div", { class: "verdict" }, marks.element, meaning, error),
  );
  return {
    main,
    reply: () => ({ ...(overall !== undefined && { overall }), flags: { ...flags } }),
    missing,
    byKey,
    enterSubmits: true,
  };
}
