// Elements, made without a line of HTML: texts are texts here, whatever stands in them.

export const $ = (id) => document.getElementById(id);

// `on...` are listeners, `text` is the content, all else are attributes; false, null and undefined are left out.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const GAP = 50; // milliseconds
let saying = 0;

// Empty and filled again, so that a screen reader tells of the same words a second time.
export function say(text) {
  const place = $("said");
  place.textContent = "";
  clearTimeout(saying);
  saying = setTimeout(() => {
    place.textContent = text;
  }, GAP);
}

// The same for a place with `role="alert"`, which says nothing about words that were there before.
const alarms = new WeakMap(); // timers by place

export function alarm(place, lines) {
  const again = lines.length > 0 && place.textContent === lines.join("");
  const write = () => place.replaceChildren(...lines.map((line) => el("p", { text: line })));
  clearTimeout(alarms.get(place));
  if (!again) return write();
  place.replaceChildren();
  alarms.set(place, setTimeout(write, GAP));
  return undefined;
}

export const isTyping = (target) =>
  target instanceof HTMLElement && target.matches("textarea, select, input:not([type=radio]):not([type=checkbox])");

// A native dialog opened over the page; what opened it has the focus again when it closes.
// What lies behind is hidden from screen readers meanwhile, and a status of it would be told anew when it closes.
export function openDialog(dialog) {
  clearTimeout(saying);
  $("said").textContent = "";
  if (!dialog.open) dialog.showModal();
}

export function prepareDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll("[data-close]"))
      button.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // its backdrop
    });
  }
}
