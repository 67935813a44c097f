// The filter above the table of answers. Without scripts the form stays hidden and the whole table is shown.
"use strict";
const form = document.getElementById("filter");
if (form) {
  const rows = Array.from(document.querySelectorAll("#answers tbody tr"));
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const apply = () => {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const change = form.elements.change ? form.elements.change.value : "";
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !(words.every((word) => texts[i].includes(word)) && (!change || row.dataset.change === change));
      if (!row.hidden) shown += 1;
    });
    form.elements.count.value = shown === rows.length ? `${rows.length} prompts` : `${shown} of ${rows.length} prompts`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}
