// Answers ranked with ties: on a board, by radio buttons at each answer and by keys, which all show the same.
import { board } from "./board.js";
import { conversation } from "./content.js";
import { el, say } from "./dom.js";
import { contradiction, insert, step } from "./order.js";
import { answerCard, flagBox, scale } from "./parts.js";
import { listed, t } from "./words.js";

const LETTERS = "abcdefghi";
const FAR = 800; // characters: about as many lines as a screen has

function startOf(task, draft) {
  const old = draft?.answers ?? {};
  const last = task.answers.length;
  const entry = ({ key }) => {
    const { rank, overall, flags, axes } = old[key] ?? {};
    return [
      key,
      {
        rank: rank >= 1 && rank <= last ? rank : undefined,
        overall: overall ?? undefined,
        flags: { ...flags },
        axes: { ...axes },
      },
    ];
  };
  return Object.fromEntries(task.answers.map(entry));
}

function axisBox(axes, entry, of, last, told) {
  const count = el("span", { class: "count" });
  const show = () => {
    const set = axes
      .filter((axis) => entry.axes[axis] !== undefined)
      .map((axis) => `${t(`axis.${axis}`)} ${entry.axes[axis]}`);
    count.textContent = set.length === 0 ? "" : `, ${set.join(", ")}`;
  };
  const scales = axes.map((axis) => {
    const set = (value) => {
      if (value === undefined) delete entry.axes[axis];
      else entry.axes[axis] = value;
      show();
      told();
    };
    const made = scale({
      legend: t(`axis.${axis}`),
      of,
      from: 1,
      to: last,
      low: t("rank.best"),
      high: t("rank.worst"),
      set,
    });
    made.show(entry.axes[axis]);
    return made.element;
  });
  show();
  const summary = el("summary", {}, t("axes.name"), el("span", { class: "unseen", text: ` ${of}` }), count);
  return el("details", { class: "fold" }, summary, el("p", { class: "quiet", text: t("axes.hint") }), ...scales);
}

export function rankTask(task, { me, draft, changed }) {
  const entries = startOf(task, draft);
  const keys = task.answers.map(({ key }) => key);
  const last = keys.length;
  const parts = {};
  let doubted = "";
  const state = el("p", { class: "state", id: "state" });
  const doubt = el("p", { class: "doubt", hidden: true });
  const known = (field) =>
    Object.fromEntries(
      keys.filter((key) => entries[key][field] !== undefined).map((key) => [key, entries[key][field]]),
    );
  const order = board(task.answers, { moved, go });

  function card(answer) {
    const { key } = answer;
    const of = t("answer.of", { key });
    const error = el("p", { class: "problem", id: `missing-${key}` });
    const rank = scale({
      legend: t("rank.name"),
      of,
      from: 1,
      to: last,
      low: t("rank.best"),
      high: t("rank.worst"),
      describedby: error.id,
      set: (value) => (setRank(key, value), tellMore(key)),
    });
    const [low, high] = me.scale;
    const overall = scale({
      legend: t("overall.name"),
      of,
      from: low,
      to: high,
      low: t("overall.low"),
      high: t("overall.high"),
      set: (value) => (setOverall(key, value), tellDoubt("")),
    });
    const made = answerCard(
      answer,
      rank.element,
      error,
      overall.element,
      flagBox(me.flags, entries[key].flags, of, changed),
      axisBox(me.axes, entries[key], of, last, changed),
    );
    parts[key] = { card: made, rank, overall, error };
    return made;
  }

  function sync() {
    const ranks = known("rank");
    for (const key of keys) {
      parts[key].rank.show(entries[key].rank);
      parts[key].overall.show(entries[key].overall);
      if (ranks[key] !== undefined) parts[key].error.textContent = "";
      parts[key].card.classList.toggle("ranked", ranks[key] !== undefined);
    }
    order.show(ranks);
    state.textContent = t("rank.state", { n: Object.keys(ranks).length, all: last });
    const found = contradiction(ranks, known("overall"));
    doubt.hidden = found === null;
    doubt.textContent = found === null ? "" : t("rank.doubt", { one: found[0], other: found[1] });
  }

  function setRank(key, value) {
    entries[key].rank = value;
    sync();
    changed();
  }

  function setOverall(key, value) {
    entries[key].overall = value;
    sync();
    changed();
  }

  function setAll(ranks, key) {
    for (const other of keys) entries[other].rank = ranks[other];
    sync();
    changed();
    tell(key);
  }

  function moved(key, { rank, after }) {
    if (after === undefined) setRank(key, rank);
    else setAll(insert(known("rank"), key, after), key);
    if (after === undefined) tell(key);
  }

  const tiedWith = (key) => keys.filter((other) => other !== key && entries[other].rank === entries[key].rank);

  function standing(key) {
    const { rank } = entries[key];
    if (rank === undefined) return t("say.unranked", { key });
    const tied = tiedWith(key);
    return tied.length ? t("say.tied", { key, rank, others: listed(tied) }) : t("say.ranked", { key, rank });
  }

  const tell = (key) => tellDoubt(standing(key));

  // A radio button tells of itself that it is selected, not of the others and not that nothing is.
  function tellMore(key) {
    const { rank } = entries[key];
    tellDoubt(rank === undefined || tiedWith(key).length ? standing(key) : "");
  }

  // With what the change has made doubtful, if that was not told before.
  function tellDoubt(words) {
    const more = doubt.textContent === doubted ? "" : doubt.textContent;
    doubted = doubt.textContent;
    if (words || more) say(`${words} ${more}`.trim());
  }

  function go(key) {
    parts[key].card.focus({ preventScroll: true });
    parts[key].card.scrollIntoView({ block: "nearest", behavior: "auto" });
  }

  const current = () => document.activeElement?.closest(".card")?.dataset.key;

  function byKey(event) {
    const letter = LETTERS.indexOf(event.key.toLowerCase());
    const key = current();
    if (letter >= 0 && letter < last && !event.shiftKey) return (go(keys[letter]), true);
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
    if (digit && key && event.shiftKey && Number(digit) <= me.scale[1]) {
      setOverall(key, Number(digit));
      return (tellDoubt(t("say.overall", { key, mark: digit })), true);
    }
    if (digit && key && !event.shiftKey && Number(digit) <= last) {
      setRank(key, Number(digit));
      return (tell(key), true);
    }
    if (event.key === "0" && key) return (setRank(key, undefined), tell(key), true);
    const isCard =
      document.activeElement?.classList.contains("card") ||
      document.activeElement?.id === "heading" ||
      document.activeElement === document.body;
    const side = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (side && isCard) {
      const at = key ? keys.indexOf(key) + side : side > 0 ? 0 : last - 1;
      return (go(keys[(at + last) % last]), true);
    }
    return false;
  }

  // With Alt: half a place better or worse.
  function byAlt(event) {
    const direction = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const key = current();
    if (!direction || !key) return false;
    setAll(step(known("rank"), key, direction), key);
    return true;
  }

  function reply() {
    const answers = {};
    for (const key of keys) {
      const { rank, overall, flags, axes } = entries[key];
      answers[key] = {
        ...(rank !== undefined && { rank }),
        ...(overall !== undefined && { overall }),
        flags: { ...flags },
        axes: { ...axes },
      };
    }
    return { answers };
  }

  function missing() {
    const without = keys.filter((key) => entries[key].rank === undefined);
    for (const key of without) parts[key].error.textContent = t("rank.needed");
    if (without.length === 0) return null;
    return { words: t("rank.missing", { keys: listed(without) }), focus: () => parts[without[0]].rank.focus() };
  }

  const lengths = task.answers.map(({ text }) => text.length);
  const uneven = Math.max(...lengths) - Math.min(...lengths) > FAR ? " uneven" : "";
  const cards = el("div", { class: `cards of-${Math.min(last, 3)}${uneven}` }, ...task.answers.map(card));
  const title = el("h2", { class: "part", id: "answers-title", text: t("content.answers") });
  const main = el(
    "div",
    { class: "stage" },
    conversation(task.prompt),
    el("section", { "aria-labelledby": "answers-title" }, title, cards),
  );
  const boardTitle = el("h2", { class: "part", id: "board-title", text: t("board.title") });
  const side = el(
    "section",
    { class: "order", "aria-labelledby": "board-title" },
    boardTitle,
    el("p", { class: "quiet", text: t("board.hint") }),
    order.element,
    doubt,
  );
  sync();
  doubted = doubt.textContent;
  return { main, side, state, reply, missing, byKey, byAlt, close: order.close };
}
