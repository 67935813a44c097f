// The time spent on a task: it stands still while the page is not in sight.

let before = 0;
let since = null;

const isSeen = () => document.visibilityState === "visible";

export function startClock(seconds = 0) {
  before = seconds;
  since = isSeen() ? performance.now() : null;
}

export const seconds = () => before + (since === null ? 0 : (performance.now() - since) / 1000);

document.addEventListener("visibilitychange", () => {
  const spent = seconds();
  startClock(spent);
});
