// All texts of the page: words.en.json and words.zh.json have the same keys.

const LANGUAGES = { en: "en", zh: "zh-Hans" };
let texts = {};
let language = "en";

export const currentLanguage = () => language;

export function t(key, values = {}) {
  const text = texts[key];
  if (text === undefined) throw new Error(`no text for ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

export const known = (key) => key in texts;

// What was chosen here before comes first, then what the server was started with, then what the browser asks for.
export function wanted(ofServer = "auto") {
  const chosen = stored();
  if (Object.hasOwn(LANGUAGES, chosen)) return chosen;
  if (Object.hasOwn(LANGUAGES, ofServer)) return ofServer;
  for (const name of navigator.languages) {
    const start = name.toLowerCase().split("-")[0];
    if (Object.hasOwn(LANGUAGES, start)) return start;
  }
  return "en";
}

function stored() {
  try {
    return localStorage.getItem("rlhf-kit.language") ?? "";
  } catch {
    return ""; // storage may be forbidden
  }
}

export function remember(name) {
  try {
    localStorage.setItem("rlhf-kit.language", name);
  } catch {
    // it is asked for again next time
  }
}

export async function useLanguage(name) {
  const answer = await fetch(new URL(`words.${name}.json`, import.meta.url));
  texts = await answer.json();
  language = name;
  document.documentElement.lang = LANGUAGES[name];
  fill(document);
}

// data-t is an element's content, data-t-label its name for a screen reader, data-t-hint its placeholder.
export function fill(root) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]"))
    element.setAttribute("aria-label", t(element.dataset.tLabel));
}

// A list in the way of the language: "A, B and C".
export const listed = (names) => new Intl.ListFormat(LANGUAGES[language], { type: "conjunction" }).format(names);

// Seconds in words that are as precise as an estimate is.
export function duration(seconds) {
  if (seconds < 90) return t("time.seconds", { n: Math.round(seconds) });
  if (seconds < 5400) return t("time.minutes", { n: Math.round(seconds / 60) });
  return t("time.hours", { n: (seconds / 3600).toFixed(1) });
}
