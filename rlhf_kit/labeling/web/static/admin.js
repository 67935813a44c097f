// The admin's page: how far everybody is and how well they agree, asked anew every few seconds.
import { disagreement, labelersTable, linkRow, overview, skipsTable } from "./admin_parts.js";
import { ApiError, get, post, signIn } from "./api.js";
import { $, el, say } from "./dom.js";
import { currentLanguage, remember, t, useLanguage, wanted } from "./words.js";

const EVERY = 4000;
let me = null;
let figures = null;
let links = null;
let timer = 0;
let freshness = null;
const drawn = new Map(); // of each part, what it was drawn from: only what has changed is drawn anew

// A part that is drawn anew keeps the focus where it was.
function draw(id, value, build) {
  const from = JSON.stringify([currentLanguage(), value]);
  if (drawn.get(id) === from) return;
  drawn.set(id, from);
  const focused = $(id).contains(document.activeElement) ? document.activeElement.id : "";
  $(id).replaceChildren(...build(value));
  if (focused) $(focused)?.focus();
}

function show() {
  const { paused, labelers, disagreements, skips } = figures;
  $("running").textContent = t(paused ? "admin.paused" : "admin.running");
  $("running").classList.toggle("is-paused", paused);
  $("pause").textContent = t(paused ? "admin.resume" : "admin.pause");
  draw("overview", { ...figures, labelers: 0, disagreements: 0, skips: 0 }, overview);
  draw("labelers", labelers, (rows) => [labelersTable(rows)]);
  draw("links", links, (rows) => rows.map(linkRow));
  draw("disagreements", disagreements, (rows) =>
    rows.length ? rows.map((row) => disagreement(row, more)) : [nothing("admin.no_disagreements")],
  );
  draw("skips", skips, (rows) => [rows.length ? skipsTable(rows) : nothing("admin.no_skips")]);
  $("all").hidden = false;
}

// How fresh it all is; said again in another language.
function tell(words, { stale = false } = {}) {
  freshness = words;
  $("updated").textContent = words();
  $("updated").classList.toggle("stale", stale);
}

const nothing = (key) => el("p", { class: "quiet", text: t(key) });

async function refresh() {
  clearTimeout(timer);
  try {
    if (document.visibilityState === "visible" || figures === null) {
      figures = await get("/api/admin");
      show();
      const at = new Date();
      tell(() => t("admin.updated", { time: at.toLocaleTimeString(document.documentElement.lang) }));
    }
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401 || error.status === 403) return refused();
    tell(() => t("admin.stale", { error: error.message }), { stale: true });
  }
  timer = setTimeout(refresh, EVERY);
  return undefined;
}

async function act(request, words) {
  try {
    await request();
    say(words);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    drawn.clear(); // a button may say already what has not come about
    say(error.message);
  }
  await refresh();
}

const pause = () =>
  act(
    () => post("/api/admin/pause", { paused: !figures.paused }),
    t(figures.paused ? "admin.running" : "admin.paused"),
  );

function more(task, button) {
  if (button.ariaDisabled) return;
  button.ariaDisabled = "true"; // whoever is on it stays there
  button.textContent = t("admin.asked");
  act(() => post("/api/admin/more", { task }), t("admin.asked"));
}

function refused() {
  $("all").hidden = true;
  $("notice").replaceChildren(el("p", { text: t("admin.refused_more") }));
  $("notice").hidden = false;
  $("heading").textContent = t("notice.refused");
  $("heading").focus();
}

async function setLanguage(name) {
  await useLanguage(name);
  $("language").value = name;
  $("title").textContent = me?.title || "rlhf-kit";
  document.title = `${t("admin.title")} · ${me?.title || "rlhf-kit"}`;
}

async function start() {
  await setLanguage(wanted());
  $("language").addEventListener("change", async () => {
    await setLanguage($("language").value);
    remember($("language").value);
    if (freshness) $("updated").textContent = freshness();
    if (figures) show();
  });
  $("pause").addEventListener("click", pause);
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && figures) refresh();
  });
  try {
    me = await signIn("admin");
    await setLanguage(wanted(me.language));
    links = (await get("/api/admin/links")).links.filter(({ name }) => name !== me.name);
    await refresh();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    refused();
  }
  document.body.dataset.ready = "yes";
}

start();
