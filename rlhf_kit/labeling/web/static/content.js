// What models and labelers wrote. The server's `html` has been made of Markdown and sanitised there; here it is parsed
// into a document of its own, which runs and loads nothing, and only what is known below is taken over.
import { el } from "./dom.js";
import { t } from "./words.js";

const TAGS = new Set(
  (
    "p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong s del b i u sub sup a span div " +
    "table thead tbody tfoot tr th td dl dt dd kbd"
  ).split(" "),
);
const SCHEMES = new Set(["http:", "https:", "mailto:"]);

function copy(node) {
  if (node.nodeType === Node.TEXT_NODE) return [document.createTextNode(node.data)];
  if (node.nodeType !== Node.ELEMENT_NODE) return [];
  const tag = node.localName;
  if (tag === "script" || tag === "style" || tag === "template") return [];
  const children = Array.from(node.childNodes, copy).flat();
  if (!TAGS.has(tag)) return children;
  // The page has headings of its own, of the first two levels: those of a text stand below them.
  const heading = tag.match(/^h([1-6])$/);
  const made = el(heading ? `h${Math.max(3, Number(heading[1]))}` : tag, {}, ...children);
  if (tag === "ol" && /^\d{1,9}$/.test(node.getAttribute("start") ?? ""))
    made.start = Number(node.getAttribute("start"));
  if (tag === "a") link(made, node.getAttribute("href") ?? "");
  return [made];
}

function link(made, address) {
  if (!URL.canParse(address) || !SCHEMES.has(new URL(address).protocol)) return;
  made.href = address;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  made.title = address; // where it goes is seen before it is followed
}

// A box that scrolls sideways can be reached and named without a mouse.
function scrolling(element, name, kind) {
  const box = el("div", { class: `scroll ${kind}`, tabindex: "0", role: "region", "aria-label": name });
  element.replaceWith(box);
  box.append(element);
}

export function formatted(html, className = "text") {
  const parsed = new DOMParser().parseFromString(html, "text/html");
  const made = el("div", { class: className, dir: "auto" }, ...Array.from(parsed.body.childNodes, copy).flat());
  // A list or a table goes the way of its own text, with its marks; within it each line does (style.css).
  for (const block of made.children) block.dir = "auto";
  for (const pre of made.querySelectorAll("pre")) {
    pre.dir = "ltr";
    scrolling(pre, t("content.code"), "code");
  }
  for (const table of made.querySelectorAll("table")) scrolling(table, t("content.table"), "wide");
  return made;
}

// What shows nothing when it is formatted, such as an empty heading, stands there as it was written.
export function readable({ html, text }, className = "text") {
  const made = formatted(html, className);
  if (made.textContent.trim() === "") made.replaceChildren(el("p", { class: "bare", text }));
  return made;
}

// The whole conversation, turn by turn.
export function conversation(turns) {
  if (!turns || turns.length === 0) return null;
  const items = turns.map((turn) => {
    const name = el("h3", { class: "role", text: t(`role.${turn.role}`) });
    return el("li", { class: `turn ${turn.role}` }, name, readable(turn));
  });
  const title = el("h2", {
    class: "part",
    id: "conversation-title",
    text: t(turns.length > 1 ? "content.conversation" : "content.prompt"),
  });
  return el(
    "section",
    { class: "conversation", "aria-labelledby": "conversation-title" },
    title,
    el("ol", { class: "turns" }, ...items),
  );
}

export function excerpt(text, most = 120) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > most ? `${line.slice(0, most)}…` : line;
}
