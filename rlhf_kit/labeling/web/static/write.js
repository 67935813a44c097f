// What labelers write themselves: the best answer to a prompt, or a prompt.
import { conversation, formatted } from "./content.js";
import { el } from "./dom.js";
import { t } from "./words.js";

const KINDS = ["plain", "few_shot", "use_case"];
const MOST_EXAMPLES = 20; // what the server takes, as are the lengths
const MOST_TEXT = 50000;
const MOST_CASE = 200;
const isBlank = (text) => text.trim() === "";
let names = 0;

function field({ label, hint, value, rows, told, name, most = MOST_TEXT }) {
  const id = `field-${++names}`;
  const error = el("p", { class: "problem", id: `${id}-error` });
  const area = el("textarea", {
    id,
    name,
    rows: String(rows),
    maxlength: String(most),
    dir: "auto",
    "aria-describedby": `${id}-hint ${id}-error`,
  });
  area.value = value;
  area.addEventListener("input", () => {
    error.textContent = "";
    told(area.value);
  });
  const element = el(
    "div",
    { class: "field" },
    el("label", { for: id, text: label }),
    el("span", { class: "quiet", id: `${id}-hint`, text: hint }),
    area,
    error,
  );
  const need = (words) => {
    error.textContent = words;
    return { words, focus: () => area.focus() };
  };
  return { element, area, need };
}

export function demonstrateTask(task, { draft, changed }) {
  let completion = draft?.completion ?? "";
  const count = el("p", { class: "quiet count-of" });
  const told = (text) => {
    completion = text;
    tellCount();
    changed();
  };
  const tellCount = () => {
    count.textContent = t("write.count", { n: [...completion].length });
  };
  const answer = field({
    label: t("demonstrate.label"),
    hint: t("demonstrate.hint"),
    value: completion,
    rows: 12,
    told,
    name: "completion",
  });
  tellCount();
  const main = el("div", { class: "stage" }, conversation(task.prompt), answer.element, count);
  const missing = () => (isBlank(completion) ? answer.need(t("demonstrate.missing")) : null);
  return { main, reply: () => ({ completion }), missing, first: () => answer.area };
}

export function writeTask(task, { draft, changed }) {
  const state = {
    kind: task.prompt_kind ?? draft?.kind ?? "plain",
    prompt: draft?.prompt ?? "",
    use_case: draft?.use_case ?? "",
    examples: (draft?.examples ?? []).map(({ query, response }) => ({ query, response })),
  };
  const place = el("div", { class: "writing" });
  let prompt, useCase, pairs, list;

  function keep(name, text) {
    state[name] = text;
    changed();
  }

  function pair(example, number) {
    const part = (name) =>
      field({
        label: t(`write.${name}`, { n: number }),
        hint: "",
        value: example[name],
        rows: 2,
        name: `${name}-${number}`,
        told: (text) => ((example[name] = text), changed()),
      });
    const [query, response] = [part("query"), part("response")];
    const remove = el("button", {
      type: "button",
      class: "plain",
      text: t("write.remove", { n: number }),
      onclick: () => removed(example),
    });
    return { query, response, element: el("li", { class: "example" }, query.element, response.element, remove) };
  }

  function removed(example) {
    state.examples.splice(state.examples.indexOf(example), 1);
    changed();
    drawExamples();
    (pairs[pairs.length - 1]?.query.area ?? prompt.area).focus();
  }

  function added() {
    state.examples.push({ query: "", response: "" });
    changed();
    drawExamples();
    pairs[pairs.length - 1].query.area.focus();
  }

  function drawExamples() {
    if (state.examples.length === 0) state.examples.push({ query: "", response: "" });
    pairs = state.examples.map((example, i) => pair(example, i + 1));
    const add = el("button", {
      type: "button",
      text: t("write.add"),
      disabled: pairs.length >= MOST_EXAMPLES,
      onclick: added,
    });
    list.replaceChildren(el("ol", { class: "examples" }, ...pairs.map(({ element }) => element)), add);
  }

  function draw() {
    const few = state.kind === "few_shot";
    prompt = field({
      label: t(few ? "write.instruction" : "write.prompt"),
      hint: t(`write.hint_${state.kind}`),
      value: state.prompt,
      rows: few ? 3 : 8,
      name: "prompt",
      told: (text) => keep("prompt", text),
    });
    place.replaceChildren();
    useCase = undefined;
    if (state.kind === "use_case") {
      useCase = field({
        label: t("write.use_case"),
        hint: t("write.hint_case"),
        value: state.use_case,
        rows: 2,
        most: MOST_CASE,
        name: "use_case",
        told: (text) => keep("use_case", text),
      });
      place.append(useCase.element);
    }
    place.append(prompt.element);
    if (few) {
      list = el("section", { "aria-label": t("write.examples") });
      place.append(list);
      drawExamples();
    }
  }

  function kindChoice() {
    if (task.prompt_kind) return null;
    const labels = KINDS.map((kind) => {
      const input = el("input", {
        type: "radio",
        name: "kind",
        value: kind,
        onchange: () => (keep("kind", kind), draw()),
      });
      input.checked = kind === state.kind;
      return el("label", {}, input, el("span", { text: t(`write.kind_${kind}`) }));
    });
    return el("fieldset", { class: "kinds" }, el("legend", { text: t("write.kind") }), ...labels);
  }

  function missing() {
    if (state.kind === "use_case" && isBlank(state.use_case)) return useCase.need(t("write.missing_case"));
    if (isBlank(state.prompt)) return prompt.need(t("write.missing"));
    if (state.kind !== "few_shot") return null;
    for (const [i, { query, response }] of state.examples.entries()) {
      if (isBlank(query)) return pairs[i].query.need(t("write.missing_example", { n: i + 1 }));
      if (isBlank(response)) return pairs[i].response.need(t("write.missing_example", { n: i + 1 }));
    }
    return null;
  }

  function reply() {
    const examples = state.kind === "few_shot" ? state.examples.map((example) => ({ ...example })) : [];
    return {
      kind: state.kind,
      prompt: state.prompt,
      examples,
      use_case: state.kind === "use_case" ? state.use_case : "",
    };
  }

  draw();
  const hint = task.hint
    ? el(
        "section",
        { class: "conversation", "aria-label": t("write.given") },
        el("h2", { class: "part", text: t("write.given") }),
        formatted(task.hint),
      )
    : null;
  const main = el("div", { class: "stage" }, hint, kindChoice(), place);
  return { main, reply, missing, first: () => (useCase ?? prompt).area };
}
