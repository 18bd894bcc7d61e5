// One workflow: its metrics, trends, steps and last runs, and a comparison of two runs.

import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { distribution } from "../drawing/distribution.js";
import { dollars, duration, percent, shortId, status, stepCounts } from "../format.js";
import { time } from "../times.js";
import { Comparison } from "./comparison.js";
import { ExpectationBlock } from "./expectation.js";
import { RunDots } from "./run_dots.js";
import { TrendCharts } from "./trend_charts.js";

const RANGES = {
  "24h": "last day",
  "7d": "last week",
  "30d": "last month",
  "90d": "last quarter",
  "365d": "last year",
};
const BUCKETS = { "24h": "1h", "7d": "1h", "30d": "1d", "90d": "1d", "365d": "1d" };
const LAST_RUNS = 20;
/** Runs that the chart of single runs shows, the newest. */
const MAX_DOTS = 1000;

export class WorkflowView {
  constructor(app, id, parameters) {
    this.app = app;
    this.id = id;
    this.parameters = parameters;
    this.path = `api/workflows/${encodeURIComponent(id)}`;
    this.element = h(
      "section",
      { class: "workflow" },
      h("h1", { tabindex: -1 }, "Workflow"),
      h("p", { class: "quiet" }, "Loading…"),
    );
    this.selectedRuns = new Set([parameters.get("a"), parameters.get("b")].filter(Boolean));
  }

  get range() {
    const range = this.parameters.get("range") ?? "7d";
    return range in RANGES ? range : "7d";
  }

  async open() {
    const { range } = this;
    const [metrics, trends, runs] = await Promise.all([
      get(`${this.path}/metrics`, { from: range }),
      get(`${this.path}/trends`, { from: range, bucket: BUCKETS[range] }),
      get(`${this.path}/executions`, { limit: MAX_DOTS, from: range }),
    ]);
    this.runs = runs.items.slice(0, LAST_RUNS);
    // A workflow that has not run for long still has last runs.
    if (!this.runs.length) this.runs = (await get(`${this.path}/executions`, { limit: LAST_RUNS })).items;
    Object.assign(this, { metrics, trends, dots: runs });
    this.build();
    await Promise.all([this.compare(), this.expectation.read()]);
  }

  build() {
    const { metrics, trends } = this;
    document.title = `${metrics.workflow_name} · Tachograph`;
    const range = h(
      "select",
      {
        id: "range",
        on: { change: () => this.app.navigate(`#/workflows/${encodeURIComponent(this.id)}?range=${range.value}`) },
      },
      Object.entries(RANGES).map(([value, text]) => h("option", { value, selected: value === this.range }, text)),
    );
    const facts = [
      ["Runs", metrics.total_executions.toLocaleString("en")],
      ["Last run", this.runs.length ? this.lastResult(this.runs[0]) : "–"],
      // Without outcomes the rate is 0, which would read as if everything had failed.
      ["Success", percent(metrics.successful_executions + metrics.failed_executions ? metrics.success_rate : null)],
      ["Median", duration(metrics.p50)],
      ["95th percentile", duration(metrics.p95)],
      ["99th percentile", duration(metrics.p99)],
      ["Retries", String(metrics.retry_count)],
      metrics.cost_usd ? ["Cost", dollars(metrics.cost_usd)] : null,
      ["Last success", time(metrics.last_completed_at, "both")],
    ].filter(Boolean);
    this.comparison = new Comparison();
    this.expectation = new ExpectationBlock(this.app, metrics.workflow_name);
    this.charts = new TrendCharts(trends);
    this.runDots = new RunDots(this.dots, trends);
    replace(
      this.element,
      h(
        "div",
        { class: "title" },
        h("h1", { tabindex: -1 }, metrics.workflow_name),
        h("label", { class: "choice", for: "range" }, h("span", { class: "quiet" }, "Time"), range),
        h(
          "nav",
          { class: "links", "aria-label": "This workflow" },
          h("a", { href: `#/?workflow=${encodeURIComponent(metrics.workflow_id)}` }, "Runs"),
        ),
      ),
      h(
        "dl",
        { class: "facts" },
        facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
      ),
      trends.change_points.length
        ? h(
            "ul",
            { class: "changes" },
            trends.change_points.map((point) => h("li", { class: point.direction }, sentenceOf(point))),
          )
        : null,
      this.expectation.element,
      this.comparison.element,
      this.runDots.element,
      this.charts.element,
      h("h2", {}, "Steps"),
      this.steps(),
      h("h2", {}, "Last runs"),
      h(
        "p",
        { class: "quiet" },
        "Select one run to compare it with the usual ones, or two to compare them with each other.",
      ),
      this.lastRuns(),
    );
    this.charts.draw();
  }

  lastResult(run) {
    return h(
      "a",
      { href: `#/executions/${run.execution_id}` },
      status(run.status),
      " ",
      time(run.completed_at ?? run.started_at ?? run.created_at, "ago"),
    );
  }

  steps() {
    const columns = [
      ["Step", (step) => step.step_name],
      ["Runs", (step) => step.count],
      ["Success", (step) => step.success_rate ?? 101],
      ["Median", (step) => step.p50 ?? 0],
      ["p95", (step) => step.p95 ?? 0],
      ["Wait", (step) => totalWait(step)],
      ["Retries", (step) => step.retry_count],
      ["Critical path", (step) => step.critical_path_share ?? 0],
      ["Cost", (step) => step.cost_usd],
    ];
    let by = 7;
    let sign = -1;
    const body = h("tbody", {});
    const fill = () => {
      const read = columns[by][1];
      const sorted = [...this.metrics.steps].sort(
        (a, b) => sign * (typeof read(a) === "string" ? read(a).localeCompare(read(b)) : read(a) - read(b)),
      );
      replace(
        body,
        sorted.slice(0, 200).map((step) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, step.step_name),
            h("td", { class: "number" }, String(step.count)),
            h("td", { class: "number" }, percent(step.success_rate)),
            h("td", { class: "number" }, duration(step.p50)),
            h("td", { class: "number" }, duration(step.p95)),
            h("td", { class: "number" }, duration(totalWait(step))),
            h("td", { class: "number" }, String(step.retry_count)),
            h(
              "td",
              { class: "number share" },
              h("span", {
                class: "meter",
                "aria-hidden": "true",
                style: { "--part": String(step.critical_path_share ?? 0) },
              }),
              percent(100 * (step.critical_path_share ?? 0), 0),
            ),
            h("td", { class: "number" }, dollars(step.cost_usd)),
          ),
        ),
      );
      heads.forEach((head, index) =>
        head.setAttribute("aria-sort", index === by ? (sign < 0 ? "descending" : "ascending") : "none"),
      );
    };
    const heads = columns.map(([name], index) =>
      h(
        "th",
        { scope: "col", class: index ? "number" : null },
        h(
          "button",
          {
            type: "button",
            class: "sort",
            on: {
              click: () => {
                sign = by === index ? -sign : index === 0 ? 1 : -1;
                by = index;
                fill();
              },
            },
          },
          name,
        ),
      ),
    );
    fill();
    return h(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Steps" },
      h("table", { class: "figures" }, h("thead", {}, h("tr", {}, heads)), body),
    );
  }

  lastRuns() {
    return h(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Last runs" },
      h(
        "table",
        { class: "figures" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["Compare", "Status", "Run", "Started", "Duration", "Usual", "Steps"].map((name) =>
              h("th", { scope: "col", class: name === "Duration" ? "number" : null }, name),
            ),
          ),
        ),
        h(
          "tbody",
          {},
          this.runs.map((run) =>
            h(
              "tr",
              {},
              h(
                "td",
                {},
                h("input", {
                  type: "checkbox",
                  value: run.execution_id,
                  "aria-label": `compare run ${shortId(run.execution_id)}`,
                  checked: this.selectedRuns.has(run.execution_id),
                  on: { change: (event) => this.toggleRun(run.execution_id, event.target) },
                }),
              ),
              h("td", {}, status(run.status)),
              h(
                "th",
                { scope: "row" },
                h("a", { href: `#/executions/${run.execution_id}` }, shortId(run.execution_id)),
              ),
              h("td", {}, time(run.started_at ?? run.created_at, "both")),
              h("td", { class: "number" }, duration(run.duration_seconds)),
              h(
                "td",
                {},
                this.metrics.distribution.length ? distribution(this.metrics, run.duration_seconds ?? 0, false) : null,
              ),
              h("td", {}, stepCounts(run)),
            ),
          ),
        ),
      ),
    );
  }

  toggleRun(id, box) {
    if (box.checked) {
      // A third selection replaces the first.
      if (this.selectedRuns.size === 2) {
        const [first] = this.selectedRuns;
        this.selectedRuns.delete(first);
        const firstBox = this.element.querySelector(`input[value="${CSS.escape(first)}"]`);
        if (firstBox) firstBox.checked = false;
      }
      this.selectedRuns.add(id);
    } else this.selectedRuns.delete(id);
    const [a, b] = this.selectedRuns;
    this.app.setParameters({ a: a ?? null, b: b ?? null });
    this.compare();
  }

  compare() {
    return this.comparison.show(...this.selectedRuns);
  }

  search() {
    return false;
  }

  recolour() {
    this.charts?.draw();
  }

  close() {
    this.charts?.close();
    this.runDots?.close();
  }
}

/** The sentence of a change point, its times as the page shows them. */
function sentenceOf(point) {
  const times = [point.since, point.until].filter(Boolean);
  return times.reduce(
    (parts, at) =>
      parts.flatMap((part) => {
        if (typeof part !== "string" || !part.includes(at)) return [part];
        const [before, ...after] = part.split(at);
        return [before, time(at, "clock"), after.join(at)];
      }),
    [point.sentence],
  );
}

function totalWait(step) {
  return step.wait ? Object.values(step.wait).reduce((total, seconds) => total + seconds, 0) : 0;
}
