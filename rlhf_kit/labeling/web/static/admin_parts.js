// The parts of the admin's page, each made of what the server has counted.
import { excerpt } from "./content.js";
import { $, el, say } from "./dom.js";
import { duration, known, t } from "./words.js";

const percent = (share) => `${Math.round(100 * share)} %`;
const none = () => t("admin.none_yet");
const orNone = (value, write = String) => (value === null || value === undefined ? none() : write(value));
const span = ({ low, high }) => t("admin.interval", { low: percent(low), high: percent(high) });
const isSpan = ({ low, high }) => Number.isFinite(low) && Number.isFinite(high);
const estimate = (found) => (isSpan(found) ? `${percent(found.value)} (${span(found)})` : percent(found.value));

function headline(name, figure, small, caption = "") {
  const value = el("dd", { class: "figure" }, figure, small ? el("small", { text: small }) : null);
  return el("div", {}, el("dt", { text: name }), value, el("dd", { class: "quiet", text: caption }));
}

export function overview({ tasks, answers, skipped, seconds_left: left, agreement }) {
  const gold = tasks.gold ? t("admin.gold", { gold: tasks.gold }) : "";
  const pairs = agreement?.pairs;
  const alpha = agreement && agreement.alpha !== null ? t("admin.alpha", { alpha: agreement.alpha.toFixed(2) }) : "";
  return [
    headline(t("admin.done"), String(tasks.done), t("admin.of", { all: tasks.all }), gold),
    headline(t("admin.answers"), String(answers), t("admin.skipped", { n: skipped })),
    headline(t("admin.left"), orNone(left, duration), "", t(left === null ? "admin.no_estimate" : "admin.left_hint")),
    pairs
      ? headline(
          t("admin.agreement"),
          percent(pairs.value),
          isSpan(pairs) ? span(pairs) : "",
          [t("admin.agreement_hint"), alpha].filter(Boolean).join(" · "),
        )
      : headline(t("admin.agreement"), none(), "", t("admin.no_agreement")),
  ];
}

// A table that becomes a list of cards on a phone: each cell knows the name of its column.
function table(name, heads, rows) {
  const head = el(
    "tr",
    { role: "row" },
    ...heads.map((text) => el("th", { scope: "col", role: "columnheader", text })),
  );
  const cell = (text, i) =>
    el(i === 0 ? "th" : "td", {
      scope: i === 0 ? "row" : false,
      role: i === 0 ? "rowheader" : "cell",
      "data-label": heads[i],
      text,
      dir: "auto",
    });
  const body = rows.map((cells) => el("tr", { role: "row" }, ...cells.map(cell)));
  // Laid out as blocks, a table would no longer be one to a screen reader: the roles say that it is.
  return el(
    "table",
    { class: "list", role: "table", "aria-label": name },
    el("thead", { role: "rowgroup" }, head),
    el("tbody", { role: "rowgroup" }, ...body),
  );
}

function when(at) {
  const date = new Date(typeof at === "number" ? 1000 * at : at);
  return date.toLocaleString(document.documentElement.lang, {
    month: "short",
    day: "numeric",
    hour: "2-digit",
    minute: "2-digit",
  });
}

export function labelersTable(rows) {
  const heads = [
    "admin.name",
    "admin.answered",
    "admin.skipped_name",
    "admin.median",
    "admin.per_hour",
    "admin.gold_right",
    "admin.with_others",
    "admin.last",
  ];
  const cells = rows.map((row) => [
    row.name,
    String(row.answered),
    String(row.skipped),
    orNone(row.median_seconds, duration),
    orNone(row.per_hour, (value) => value.toFixed(value < 10 ? 1 : 0)),
    row.gold_pairs ? t("admin.gold_of", { right: row.gold_right, all: row.gold_pairs }) : none(),
    orNone(row.agreement, estimate),
    orNone(row.last_at, when),
  ]);
  return table(
    t("admin.labelers"),
    heads.map((key) => t(key)),
    cells,
  );
}

// Where the page is not served safely (http of another machine), the browser has no clipboard: the text is selected.
async function copy(field, name) {
  try {
    await navigator.clipboard.writeText(field.value);
    say(t("admin.copied", { name }));
    return true;
  } catch {
    field.select();
    return false;
  }
}

export function linkRow({ name, url }) {
  const field = el("input", {
    type: "text",
    readonly: true,
    value: url,
    "aria-label": t("admin.link_of", { name }),
    id: `link-${name}`,
    spellcheck: "false",
  });
  const button = el(
    "button",
    { type: "button", id: `copy-${name}` },
    t("admin.copy"),
    el("span", { class: "unseen", text: ` ${t("admin.copy_of", { name })}` }),
  );
  const done = el("span", { class: "quiet", "aria-hidden": "true" });
  button.addEventListener("click", async () => {
    done.textContent = (await copy(field, name)) ? "✓" : "";
  });
  return el("li", {}, el("b", { text: name, dir: "auto" }), field, button, done);
}

export function disagreement({ task, prompt, answers, agreement }, more) {
  const names = [...new Set(answers.flatMap(({ ranks }) => Object.keys(ranks)))].sort();
  const heads = [t("admin.answer"), t("admin.source"), ...names.map((name) => t("admin.rank_by", { name }))];
  const rows = answers.map(({ key, text, source, ranks }) => [
    `${key}: ${excerpt(text, 200)}`,
    orNone(source),
    ...names.map((name) => orNone(ranks[name])),
  ]);
  const button = el("button", {
    type: "button",
    id: `more-${task}`,
    text: t("admin.more"),
    onclick: () => more(task, $(`more-${task}`)),
  });
  const told =
    agreement === null || agreement === undefined ? "" : t("admin.task_agreement", { value: percent(agreement) });
  return el(
    "article",
    { class: "disagreement" },
    el("h3", { dir: "auto", text: excerpt(prompt, 300) }),
    el("p", { class: "quiet", text: told }),
    table(excerpt(prompt), heads, rows),
    button,
  );
}

const reasonName = (reason) => (known(`reason.${reason}`) ? t(`reason.${reason}`) : reason);

export function skipsTable(rows) {
  const heads = ["admin.prompt", "admin.reason", "admin.note", "admin.labeler"].map((key) => t(key));
  const cells = rows.map(({ labeler, reason, note, prompt }) => [
    excerpt(prompt),
    reasonName(reason),
    note || none(),
    labeler,
  ]);
  return table(t("admin.skips"), heads, cells);
}
