// The filter above the table of answers. Without scripts the form stays hidden and the whole table is shown.
"use strict";
const form = document.getElementById("filter");
if (form) {
  const rows = Array.from(document.querySelectorAll("#answers tbody tr"), (row) => ({
    row,
    text: row.textContent.toLowerCase(),
    folded: Array.from(row.querySelectorAll("details"), (details) => ({ details, text: details.textContent.toLowerCase() })),
  }));
  const first = 24; // a phone would scroll for long past a hundred prompts to what comes after them
  const rest = document.getElementById("rest");
  let all = rows.length <= first;
  const apply = () => {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const change = form.elements.change ? form.elements.change.value : "";
    const filtered = words.length > 0 || change !== "";
    let shown = 0;
    rows.forEach(({ row, text, folded }, place) => {
      row.classList.toggle("later", !all && !filtered && place >= first);
      row.hidden = !(words.every((word) => text.includes(word)) && (!change || row.dataset.change === change));
      if (row.hidden) return;
      shown += 1;
      // A word that only a folded sample has would be found and not seen.
      folded.forEach(({ details, text }) => {
        const holds = words.length > 0 && words.some((word) => text.includes(word));
        if (holds || details.dataset.found) details.open = holds;
        if (holds) details.dataset.found = "yes";
        else delete details.dataset.found;
      });
    });
    rest.hidden = all || filtered;
    form.elements.count.value = shown === rows.length ? `${rows.length} prompts` : `${shown} of ${rows.length} prompts`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  rest.addEventListener("click", () => {
    all = true;
    apply();
  });
  rest.textContent = `Show the other ${rows.length - first} prompts`;
  form.hidden = false;
  apply();
}
