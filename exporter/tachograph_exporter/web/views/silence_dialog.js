// Asks what nobody is to be told of, and until when.

import { post } from "../api.js";
import { askForm, field } from "../dialog.js";
import { h } from "../dom.js";
import { inputTime, inputValue, timeOfDay } from "../times.js";

export const KINDS = ["late", "overdue", "stuck", "failed", "flapping", "stale", "success_rate", "cost", "regression"];
const SEVERITIES = { "": "any", info: "info", warning: "warning or less", critical: "critical or less" };
const LENGTHS = { "1h": "1 hour", "2h": "2 hours", "8h": "8 hours", "24h": "a day", "7d": "a week", until: "until …" };

function select(options, value) {
  return h(
    "select",
    {},
    Object.entries(options).map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );
}

/** Ask for a silence about a workflow (a name, or "") and a kind (or ""). Resolves to whether there is one now. */
export function askForSilence(workflow = "", kind = "") {
  const name = h("input", { type: "text", value: workflow, maxlength: 200, placeholder: "all workflows" });
  const kinds = select({ "": "any", ...Object.fromEntries(KINDS.map((word) => [word, word.replace("_", " ")])) }, kind);
  const severity = select(SEVERITIES, "");
  const length = select(LENGTHS, "2h");
  length.id = "silence-for";
  const morning = timeOfDay(new Date().getHours() < 8 ? 0 : 1, 9);
  const until = h("input", { type: "datetime-local", value: inputValue(morning), "aria-label": "Until", hidden: true });
  const reason = h("input", { type: "text", maxlength: 1000, placeholder: "why" });
  length.addEventListener("change", () => (until.hidden = length.value !== "until"));
  const save = () =>
    post("api/silences", {
      workflow: name.value.trim() || null,
      kind: kinds.value || null,
      severity: severity.value || null,
      reason: reason.value.trim(),
      ...(length.value === "until"
        ? { until: new Date(inputTime(until.value) ?? 0).toISOString() }
        : { duration: length.value }),
    });
  return askForm(
    "Silence",
    "Nobody is told of it. It is recorded all the same, and told if it still holds when the silence is over.",
    "Silence",
    [
      field("Workflow", name, "* and ? are wildcards"),
      field("Kind", kinds),
      field("Severity", severity),
      [h("label", { for: "silence-for" }, "For"), h("span", { class: "length" }, length, until)],
      field("Reason", reason),
    ],
    save,
  );
}
