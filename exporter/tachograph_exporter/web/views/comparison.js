// A run compared with another run, or with the usual runs of its workflow: which step made the difference.

import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { duration, percent, shortId, size, times } from "../format.js";

const MAX_STEPS = 30;

export class Comparison {
  constructor() {
    this.element = h("section", {
      class: "comparison",
      hidden: true,
      "aria-live": "polite",
      "aria-label": "Comparison",
    });
  }

  /** Compare run `b` with run `a`, or only run `a` with usual runs; without a run show nothing. */
  async show(a, b) {
    this.reading?.abort();
    this.reading = new AbortController();
    const { signal } = this.reading;
    this.element.hidden = !a;
    if (!a) return;
    // The later run against the earlier one; ids sort by time.
    const [reference, execution] = b ? [a, b].sort() : [null, a];
    try {
      const comparison = await get(
        "api/workflows/executions/compare",
        b ? { a: reference, b: execution } : { execution },
        { signal },
      );
      replace(
        this.element,
        h("h2", {}, b ? "Two runs compared" : "Compared with usual runs"),
        h("p", { class: "sentence" }, comparison.sentence),
        h(
          "p",
          { class: "quiet" },
          h("a", { href: `#/executions/${execution}` }, shortId(execution)),
          b
            ? [" against ", h("a", { href: `#/executions/${reference}` }, shortId(reference))]
            : comparison.baseline
              ? ` against ${comparison.baseline.execution_count} completed runs`
              : null,
        ),
        comparedSteps(comparison),
      );
    } catch (problem) {
      if (problem.name === "AbortError") return;
      replace(this.element, h("p", { class: "error-text" }, problem.message));
    }
  }
}

/** Columns that are there only if something says anything: (title, how, of a step, of the other side). */
const USED = [
  ["Processor", duration, "cpu_seconds", "reference_cpu_seconds"],
  ["Memory", size, "peak_memory_bytes", "reference_peak_memory_bytes"],
  ["Read", size, "read_bytes", "reference_read_bytes"],
  ["Written", size, "written_bytes", "reference_written_bytes"],
];

function comparedSteps(comparison) {
  const shown = comparison.steps.slice(0, MAX_STEPS);
  const used = USED.filter(([, , field, other]) => shown.some((step) => step[field] || step[other]));
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Compared steps" },
    h(
      "table",
      { class: "figures" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["Step", "Duration", "Reference", "Difference", "Ratio", "Blame", ...used.map(([title]) => title)].map(
            (name, index) => h("th", { scope: "col", class: index ? "number" : null }, name),
          ),
        ),
      ),
      h(
        "tbody",
        {},
        shown.map((step) =>
          h(
            "tr",
            { class: step.step_name === comparison.culprit ? "culprit" : "" },
            h(
              "th",
              { scope: "row" },
              step.on_critical_path ? h("span", { class: "critical", title: "on the critical path" }, "◆ ") : null,
              step.step_name,
              step.not_in_reference
                ? h("span", { class: "quiet" }, comparison.baseline ? " usually does not run" : " ran here only")
                : null,
            ),
            h("td", { class: "number" }, duration(step.seconds)),
            h("td", { class: "number" }, duration(step.reference_seconds)),
            h("td", { class: "number" }, step.difference_seconds === null ? "–" : duration(step.difference_seconds)),
            h("td", { class: "number" }, step.ratio === null ? "–" : times(step.ratio)),
            h("td", { class: "number" }, step.blame ? percent(100 * step.blame, 0) : ""),
            used.map(([, text, field, other]) =>
              h(
                "td",
                { class: "number" },
                text(step[field]),
                h("span", { class: "quiet" }, step[other] === null ? "" : ` (${text(step[other])})`),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}
