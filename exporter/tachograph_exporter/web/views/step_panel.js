// The details of the selected step.

import { button } from "../controls.js";
import { h } from "../dom.js";
import { dollars, duration, status, times } from "../format.js";
import { now } from "../now.js";
import { time } from "../times.js";
import { stepResources } from "./resources.js";

/** The contents of the panel for a step. `select(step | null)` selects another; `trace` links to the trace.
 *  `below` and `log` are elements: what lies below it, and its lines. */
export function stepDetails(run, step, { select, trace, below, log }) {
  const { entry } = step;
  const length =
    step.start === null
      ? null
      : (entry.duration_seconds ?? ((run.barEnd(step, now()) ?? step.start) - step.start) / 1000);
  const stepsById = (ids) => ids.map((id) => run.byId.get(id)).filter(Boolean);
  const waits = entry.wait
    ? [
        ["dependencies", entry.wait.dependency],
        ["a free slot", entry.wait.queue],
        ["backoff", entry.wait.backoff],
        ["its scheduled time", entry.wait.scheduled],
        ["the program itself", entry.wait.unaccounted],
      ].filter(([, value]) => value > 0)
    : [];
  const usual = run.usual.get(step.id);
  const facts = [
    ["Status", status(step.status)],
    entry.folded ? ["Repetitions", repetitions(entry.folded)] : null,
    entry.skip_reason ? ["Reason", entry.skip_reason.replaceAll("_", " ")] : null,
    ["Started", time(entry.started_at)],
    ["Finished", time(entry.completed_at)],
    ["Duration", duration(length)],
    usual
      ? [
          "Usually",
          [duration(usual.seconds), usual.isSlow ? h("b", { class: "slow-ratio" }, times(usual.ratio)) : null],
        ]
      : null,
    entry.run_seconds !== undefined && entry.run_seconds !== null ? ["Running", duration(entry.run_seconds)] : null,
    waits.length ? ["Waited for", waits.map(([name, value]) => `${name} ${duration(value)}`).join(", ")] : null,
    ["Slack", step.isCritical ? "none: it is on the critical path" : duration(entry.slack_seconds)],
    entry.cost
      ? [
          "Cost",
          `${entry.cost.usd ? dollars(entry.cost.usd) : "not known"}, ${entry.cost.tokens_in} tokens in, ${entry.cost.tokens_out} out${entry.cost.models.length ? ` (${entry.cost.models.join(", ")})` : ""}`,
        ]
      : null,
    entry.outside_run_seconds
      ? [
          "Outside the run",
          `${duration(Math.abs(entry.outside_run_seconds))} ${entry.outside_run_seconds > 0 ? "after its end" : "before its start"}`,
        ]
      : null,
    ["Type", entry.step_type],
    entry.child_execution_id
      ? ["Run", h("a", { href: `#/executions/${encodeURIComponent(entry.child_execution_id)}` }, entry.step_name)]
      : null,
  ].filter(Boolean);
  const stepLink = (other) =>
    h("button", { type: "button", class: "link", on: { click: () => select(other) } }, other.name);
  const stepList = (title, steps) =>
    steps.length
      ? [
          h("h3", {}, title),
          h(
            "ul",
            { class: "plain" },
            steps.slice(0, 50).map((other) => h("li", {}, stepLink(other))),
            steps.length > 50 ? h("li", { class: "quiet" }, `and ${steps.length - 50} more`) : null,
          ),
        ]
      : [];
  return [
    h(
      "div",
      { class: "panelhead" },
      h("h2", {}, step.name),
      button("×", "Close (Escape)", () => select(null)),
    ),
    entry.error_message
      ? [
          h("h3", {}, "Error"),
          h("p", { class: "error-text" }, `${entry.error_type}: ${entry.error_message}`),
          causeLink(entry.failure_group),
          entry.error_stack
            ? h("details", {}, h("summary", {}, "Stack"), h("pre", { tabindex: 0 }, entry.error_stack))
            : null,
        ]
      : null,
    below,
    log,
    step.attempts.length > 1 ? attempts(step) : null,
    h(
      "dl",
      { class: "pairs" },
      facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    ),
    stepResources(entry),
    stepList("Depends on", stepsById(step.dependsOn)),
    stepList("Dependents", step.dependents),
    json("Inputs", entry.input_summary),
    json("Outputs", entry.output_summary),
    entry.measures?.length
      ? [
          h("h3", {}, "Measures"),
          h(
            "dl",
            { class: "pairs" },
            entry.measures.map(({ name, value, unit }) => [h("dt", {}, name), h("dd", {}, `${value} ${unit}`)]),
          ),
        ]
      : null,
    h("p", { class: "quiet" }, "Span ", h("code", {}, entry.span_id ?? ""), " of trace ", trace),
  ];
}

/** Where all failures of a cause are; null if it is not known. */
export function causeLink(group) {
  return group ? h("p", {}, h("a", { href: `#/failures/${group}` }, "All failures of this cause")) : null;
}

function repetitions(folded) {
  const counts = ["completed", "failed", "cancelled", "lost", "running"].filter((name) => folded[name]);
  const parts = counts.map((name) => `${folded[name].toLocaleString("en")} ${name}`);
  if (folded.p50 !== null) {
    parts.push(
      `half within ${duration(folded.p50)}, 95 % within ${duration(folded.p95)}, at most ${duration(folded.max)}`,
    );
  }
  return parts.join(", ");
}

function attempts(step) {
  return [
    h("h3", {}, "Attempts"),
    h(
      "ol",
      { class: "attempts" },
      step.attempts.map((attempt) =>
        h(
          "li",
          {},
          status(attempt.status),
          ` ${duration(attempt.end === null || attempt.start === null ? null : (attempt.end - attempt.start) / 1000)}`,
          attempt.backoff
            ? h("span", { class: "quiet" }, ` after ${duration(attempt.backoff / 1000)} of backoff`)
            : null,
          attempt.error ? h("div", { class: "error-text" }, attempt.error) : null,
        ),
      ),
    ),
  ];
}

function json(title, value) {
  if (value === null || value === undefined) return null;
  return [h("h3", {}, title), h("pre", { tabindex: 0 }, JSON.stringify(value, null, 2))];
}
