// The dialog that asks for the reason of a skip.
import { $, alarm, el, openDialog } from "./dom.js";
import { t } from "./words.js";

let skipped = null;

export function prepareSkip() {
  $("skip-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const reason = $("skip-reasons").querySelector("input:checked")?.value;
    if (!reason) {
      alarm($("skip-problem"), [t("skip.missing")]);
      $("skip-reasons").querySelector("input").focus();
      return;
    }
    $("skip-dialog").close();
    skipped(reason, $("skip-note").value);
  });
}

// `done(reason, note)` is called when one was chosen.
export function askReason(reasons, done) {
  skipped = done;
  $("skip-note").value = "";
  alarm($("skip-problem"), []);
  const label = (reason) =>
    el(
      "label",
      {},
      el("input", { type: "radio", name: "reason", value: reason }),
      el("span", { text: t(`reason.${reason}`) }),
    );
  $("skip-reasons").replaceChildren(...reasons.map(label));
  openDialog($("skip-dialog"));
  $("skip-reasons").querySelector("input").focus();
}
