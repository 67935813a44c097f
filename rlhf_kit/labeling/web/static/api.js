// The server's answers. Every failure is an ApiError with words for people.
import { known, t } from "./words.js";

// The server's words are English: what can happen to anybody is told in the page's language.
const wordsOf = (status, body) =>
  known(`error.${status}`) ? t(`error.${status}`) : (body.error ?? t("error.server", { status }));

export class ApiError extends Error {
  constructor(status, body) {
    super(status === 0 ? t("error.offline") : wordsOf(status, body));
    this.status = status;
    this.problems = body.problems ?? [];
  }
}

let csrf = "";
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function call(path, options, tries = 3) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch {
    throw new ApiError(0, {});
  }
  if (answer.status === 429 && tries > 1) {
    await pause(Math.min(30, Math.max(1, Number(answer.headers.get("Retry-After")) || 1)));
    return call(path, options, tries - 1);
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(answer.status, body);
  return body;
}

export const get = (path) => call(path, {});

export const post = (path, body, { keepalive = false } = {}) =>
  call(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: JSON.stringify(body),
    keepalive,
  });

// Tokens are long; "#work" is the link that jumps over the header.
const tokenOf = (hash) => (hash.length > 12 ? decodeURIComponent(hash.slice(1)) : "");

// The link's token becomes a cookie and leaves the address, so that it is in no screenshot and no bookmark.
export async function signIn(role) {
  const token = tokenOf(location.hash);
  window.addEventListener("hashchange", () => {
    if (tokenOf(location.hash)) location.reload();
  });
  if (token) {
    history.replaceState(null, "", location.pathname);
    csrf = (await post("/api/session", { token })).csrf;
  }
  const me = await get(`/api/me?role=${role}`);
  csrf = me.csrf;
  return me;
}
