// The labeler's page: one task after the other.
import { ApiError, get, post, signIn } from "./api.js";
import { seconds, startClock } from "./clock.js";
import { compareTask } from "./compare.js";
import { excerpt, formatted } from "./content.js";
import { $, el, openDialog, prepareDialogs, say } from "./dom.js";
import { flush, forget, hear, keep, newest } from "./drafts.js";
import { frame, setBusy, tellProblems, tellUnsaved } from "./frame.js";
import { fillHelp, listen, prepareSwitch } from "./keys.js";
import { rankTask } from "./rank.js";
import { rateTask } from "./rate.js";
import { askReason, prepareSkip } from "./skip.js";
import { currentLanguage, fill, remember, t, useLanguage, wanted } from "./words.js";
import { demonstrateTask, writeTask } from "./write.js";

const TASKS = { rank: rankTask, compare: compareTask, rate: rateTask, demonstrate: demonstrateTask, write: writeTask };
const POLL = 1500;
const ALONE = "labeler"; // who labels where nobody was named
let me = null;
let state = null;
let view = null;
let note = "";
let busy = false;
let timer = 0;
let guidelinesAt = 0;
const spent = new Map(); // seconds by task that was submitted: an undo goes on counting

// -------------------------------------------------------------------- showing

function show(next, { first = false } = {}) {
  state = next;
  clearTimeout(timer);
  view?.close?.();
  view = null;
  showProgress();
  if (state.task) showTask(first);
  else showNotice();
  if (!state.task && (state.paused || state.waiting)) timer = setTimeout(poll, POLL);
}

function showProgress() {
  const { answered, skipped, left } = state.progress;
  $("progress").hidden = false;
  $("bar").max = Math.max(1, answered + skipped + left);
  $("bar").value = answered + skipped;
  $("counts").textContent = t(skipped ? "progress.skipped" : "progress.counts", { answered, skipped, left });
}

function showTask(first) {
  const { task } = state;
  const draft = newest(task.assignment, task.draft);
  note = draft?.note ?? "";
  startClock(draft?.seconds ?? spent.get(task.assignment) ?? 0);
  view = TASKS[task.kind](task, { me, draft, changed });
  const on = { submit, skip, undo, noted: (text) => ((note = text), changed()) };
  $("notice").hidden = true;
  $("task").replaceChildren(frame(view, { note, canUndo: state.progress.can_undo, on }));
  setHeading(t(`heading.${task.kind}`), t(`lead.${task.kind}`));
  fillHelp(task.kind);
  window.scrollTo(0, 0);
  const goal = view.first?.() ?? $("heading");
  if (!first || view.first) goal.focus({ preventScroll: true });
}

function showNotice() {
  const kind = state.paused ? "paused" : state.waiting ? "waiting" : "done";
  const shown = `${kind} ${currentLanguage()}`;
  // Asked again every moment, it says the same: whoever is on its button stays there.
  if ($("notice").hidden || $("notice").dataset.shown !== shown) drawNotice(kind, shown);
  $("undo").disabled = !state.progress.can_undo;
}

function drawNotice(kind, shown) {
  setHeading(t(`notice.${kind}`), "");
  const undoButton = el("button", { type: "button", id: "undo", text: t("do.undo"), onclick: undo });
  const pulse = kind === "done" ? null : el("span", { class: "pulse", "aria-hidden": "true" });
  $("notice").replaceChildren(
    el("p", {}, pulse, t(`notice.${kind}_more`)),
    el("div", { class: "problems", id: "problems", role: "alert" }),
    el("div", { class: "buttons" }, undoButton),
  );
  $("notice").dataset.shown = shown;
  $("notice").className = `notice ${kind}`;
  $("notice").hidden = false;
  $("task").replaceChildren();
  fillHelp("");
  $("heading").focus();
}

function setHeading(words, lead) {
  $("heading").textContent = words;
  $("lead").textContent = lead;
  document.title = `${words} · ${me?.title || "rlhf-kit"}`;
}

// -------------------------------------------------------------------- what the labeler does

const draftOf = () => ({ ...view.reply(), note, seconds: Math.round(10 * seconds()) / 10 });

function changed() {
  tellProblems([]);
  keep(state.task.assignment, draftOf());
}

// One request at a time; a failure is told beside the button, and nothing is lost.
async function act(done, request) {
  if (busy) return;
  busy = true;
  setBusy(true);
  try {
    show(await request());
    tellDone(done);
  } catch (error) {
    await failed(error);
  } finally {
    busy = false;
    setBusy(false);
  }
}

// The heading has the focus, but not every screen reader reads it when what had the focus before is gone.
const tellDone = (done) => say(`${t(`say.${done}`)} ${t("say.progress", state.progress)} ${nextInWords()}`);

function nextInWords() {
  const turn = state.task?.prompt?.at(-1);
  const next = turn ? excerpt(turn.text) : $("heading").textContent;
  return t(state.task ? "say.next" : "say.end", { next });
}

async function failed(error) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) return showRefused(error);
  if (error.status === 409) {
    show(await get("/api/task"));
    tellProblems([error.message]);
    return undefined;
  }
  const kept = error.status === 0 ? [t("error.kept")] : [];
  const lines = [error.message, ...kept, ...error.problems.map(({ field, reason }) => `${field}: ${reason}`)];
  tellProblems(lines);
  return undefined;
}

function submit() {
  if (!view || busy) return;
  const missing = view.missing();
  if (missing) {
    tellProblems([missing.words]);
    missing.focus();
    return;
  }
  const { assignment } = state.task;
  const body = { assignment, reply: { ...view.reply(), note }, seconds: seconds() };
  spent.set(assignment, body.seconds);
  act("saved", async () => {
    await flush(); // a draft that is on its way must not come after its answer
    const next = await post("/api/answer", body);
    await forget(assignment);
    return next;
  });
}

function skip() {
  if (!view || busy) return;
  const { assignment } = state.task;
  askReason(me.skip_reasons, (reason, words) =>
    act("skipped", async () => {
      await flush();
      const next = await post("/api/skip", { assignment, reason, note: words, seconds: seconds() });
      await forget(assignment);
      return next;
    }),
  );
}

function undo() {
  if (!state?.progress.can_undo) return;
  act("undone", async () => {
    await flush();
    return post("/api/undo", {});
  });
}

// A task that nobody has begun with is soon given to another.
function leave() {
  flush({ leaving: true });
  if (view) post("/api/leave", { assignment: state.task.assignment }, { keepalive: true }).catch(() => {});
}

async function poll() {
  if (document.visibilityState !== "visible" || busy) {
    timer = setTimeout(poll, POLL);
    return undefined;
  }
  try {
    const next = await get("/api/task");
    tellProblems([]);
    if (!busy) show(next);
    if (view) say(t("say.new"));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) return showRefused(error);
    tellProblems([error.message]);
    timer = setTimeout(poll, 2 * POLL);
  }
  return undefined;
}

// -------------------------------------------------------------------- start

function showRefused(error) {
  view = null;
  $("task").replaceChildren();
  setHeading(t("notice.refused"), "");
  $("notice").className = "notice refused";
  $("notice").dataset.shown = "refused";
  $("notice").replaceChildren(el("p", { text: error.status === 401 ? t("notice.refused_more") : error.message }));
  $("notice").hidden = false;
  $("progress").hidden = true;
  $("heading").focus();
}

function showFixed() {
  $("title").textContent = me?.title || "rlhf-kit";
  $("who").textContent = me && me.name !== ALONE ? t("page.who", { name: me.name }) : "";
  $("guidelines-button").hidden = !me?.guidelines;
  if (me?.guidelines) $("guidelines").replaceChildren(formatted(me.guidelines));
}

async function setLanguage(name) {
  await useLanguage(name);
  $("language").value = name;
  showFixed();
}

async function changeLanguage() {
  const draft = view ? draftOf() : null;
  await setLanguage($("language").value);
  remember($("language").value);
  if (!state) return;
  if (draft) state.task.draft = draft;
  show(state);
  $("language").focus();
}

function prepare() {
  prepareDialogs();
  prepareSkip();
  prepareSwitch();
  hear(tellUnsaved);
  const help = () => openDialog($("help-dialog"));
  listen({ view: () => view, submit, undo, skip, help });
  $("help-button").addEventListener("click", help);
  $("guidelines-button").addEventListener("click", () => {
    openDialog($("guidelines-dialog"));
    $("guidelines").scrollTop = guidelinesAt;
  });
  $("guidelines").addEventListener("scroll", () => {
    if ($("guidelines-dialog").open) guidelinesAt = $("guidelines").scrollTop;
  });
  $("language").addEventListener("change", changeLanguage);
  $("jump").addEventListener("click", (event) => {
    event.preventDefault(); // the address keeps no fragment
    $("heading").focus();
  });
  window.addEventListener("pagehide", leave);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload(); // from the browser's memory: the task may be another's by now
  });
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") flush({ leaving: true });
  });
}

async function start() {
  await setLanguage(wanted());
  fill(document);
  prepare();
  try {
    me = await signIn("labeler");
    await setLanguage(wanted(me.language));
    show(await get("/api/task"), { first: true });
    if (view?.first) say(nextInWords()); // who is put into a field has not heard what stands before it
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showRefused(error);
  }
  document.body.dataset.ready = "yes";
}

start();
