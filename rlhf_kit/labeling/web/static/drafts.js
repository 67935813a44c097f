// What is not submitted yet: sent to the server shortly after each change, and kept by this tab until it has arrived.
import { post } from "./api.js";

const DELAY = 500;
let waiting = null; // {assignment, draft}: newer than what the server has
let timer = 0;
let sending = Promise.resolve();
let told = () => {};

// `listener(error)` hears what keeps a draft from the server, `listener(null)` that it has arrived.
export function hear(listener) {
  told = listener;
}

const name = (assignment) => `rlhf-kit.draft.${assignment}`;

function store(assignment, draft) {
  try {
    if (draft === null) sessionStorage.removeItem(name(assignment));
    else sessionStorage.setItem(name(assignment), JSON.stringify(draft));
  } catch {
    // full or forbidden: the server has it soon
  }
}

export function keep(assignment, draft) {
  waiting = { assignment, draft };
  store(assignment, draft);
  clearTimeout(timer);
  timer = setTimeout(flush, DELAY);
}

// One after the other, so that an older draft never arrives after a newer one.
export function flush({ leaving = false } = {}) {
  clearTimeout(timer);
  if (waiting === null) return sending;
  const sent = waiting;
  waiting = null;
  const send = () =>
    post("/api/draft", sent, { keepalive: leaving }).then(
      () => {
        if (waiting === null) store(sent.assignment, null);
        told(null);
      },
      (error) => {
        if (error.status !== 409) told(error); // a task that was closed meanwhile needs no draft
        if (error.status === 0 && waiting === null) {
          waiting = sent;
          timer = setTimeout(flush, 4 * DELAY);
        }
      },
    );
  sending = leaving ? send() : sending.then(send);
  return sending;
}

// The draft to go on with: this tab's own where the server has not got it.
export function newest(assignment, ofServer) {
  try {
    return JSON.parse(sessionStorage.getItem(name(assignment)) ?? "null") ?? ofServer;
  } catch {
    return ofServer;
  }
}

// Submitted or skipped: nothing of it may arrive later.
export async function forget(assignment) {
  clearTimeout(timer);
  waiting = null;
  store(assignment, null);
  await sending;
}
