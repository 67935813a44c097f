// The order as a board: a row for each rank and thin rows between them, small cards that are dragged by mouse or touch.
// Whoever cannot drag sets the same ranks at the answers themselves.
import Sortable from "./vendor/sortable.esm.js";
import { excerpt } from "./content.js";
import { el } from "./dom.js";
import { t } from "./words.js";

const MANY = 5; // from here on small cards of what is not ranked show their letters only, and all ranks fit the screen

// Of a finger, only the grip drags: everywhere else it scrolls the page.
const scrolls = (event) => (Boolean(event.touches) || event.pointerType === "touch") && !event.target.closest(".grip");

function chip(answer, go) {
  const button = el(
    "button",
    {
      type: "button",
      class: "chip-text",
      "aria-label": t("board.go", { key: answer.key }),
      onclick: () => go(answer.key),
    },
    el("b", { text: answer.key }),
    el("span", { class: "excerpt", dir: "auto", text: excerpt(answer.text) }),
  );
  return el(
    "li",
    { class: "chip", "data-key": answer.key },
    button,
    el("span", { class: "grip", "aria-hidden": "true", text: "⠿" }),
  );
}

function tier(rank, last) {
  const name = rank === 1 ? t("rank.best") : rank === last ? t("rank.worst") : "";
  const label = el(
    "p",
    { class: "tier-name", id: `tier-${rank}`, "aria-hidden": "true" },
    el("b", { text: String(rank) }),
    el("small", { text: name }),
  );
  const list = el("ul", {
    class: "drop",
    "data-rank": String(rank),
    "aria-label": name ? t("board.end", { rank, name }) : t("board.tier", { rank }),
  });
  return { row: el("div", { class: "tier" }, label, list), list };
}

// `moved(key, {rank})` for a rank, `moved(key, {after})` for a place of its own behind it, `moved(key, {})` for none.
export function board(answers, { moved, go }) {
  const last = answers.length;
  const pool = el("ul", { class: "drop pool", "aria-label": t("board.pool") });
  const tiers = answers.map((_, i) => tier(i + 1, last));
  const gaps = [0, ...answers.map((_, i) => i + 1)].map((after) =>
    el("ul", { class: "drop gap", "data-after": String(after), "aria-hidden": "true" }),
  );
  const rows = tiers.flatMap(({ row }, i) => [row, gaps[i + 1]]);
  const element = el(
    "div",
    { class: answers.length > MANY ? "board many" : "board" },
    el(
      "p",
      { class: "pool-name" },
      el("span", { class: "some", text: t("board.pool") }),
      el("span", { class: "all", text: t("board.empty") }),
    ),
    pool,
    gaps[0],
    ...rows,
  );
  const chips = Object.fromEntries(answers.map((answer) => [answer.key, chip(answer, go)]));

  const lists = [pool, ...tiers.map(({ list }) => list), ...gaps];
  // What is left by a card stays as tall, so that the goal does not move away from under the pointer.
  const started = () => {
    element.classList.add("dragging");
    for (const list of lists) list.style.minHeight = `${list.offsetHeight}px`;
  };
  const ended = ({ item, to }) => {
    element.classList.remove("dragging");
    for (const list of lists) list.style.minHeight = "";
    const { rank, after } = to.dataset;
    const where = rank ? { rank: Number(rank) } : after ? { after: Number(after) } : {};
    setTimeout(() => moved(item.dataset.key, where)); // Sortable puts its own things in order first
  };
  const sortables = lists.map((list) =>
    Sortable.create(list, {
      group: "order",
      draggable: ".chip",
      forceFallback: true, // mouse and touch go one way, whatever the browser has of its own
      fallbackOnBody: true,
      fallbackTolerance: 4, // a click goes to the answer
      animation: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 120,
      ghostClass: "ghost",
      fallbackClass: "carried",
      filter: scrolls,
      preventOnFilter: false,
      onStart: started,
      onEnd: ended,
    }),
  );

  // Each chip in the row of its rank.
  function show(ranks) {
    for (const { key } of answers) {
      const list = ranks[key] === undefined ? pool : tiers[ranks[key] - 1].list;
      if (chips[key].parentElement !== list) list.append(chips[key]);
    }
    element.classList.toggle(
      "all-ranked",
      answers.every(({ key }) => ranks[key] !== undefined),
    );
  }
  return { element, show, close: () => sortables.forEach((sortable) => sortable.destroy()) };
}
