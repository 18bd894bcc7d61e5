// A workflow over time: how often it ran, how it went, how long it took, which step to look at; two of its runs compared.

import { get } from "./api.js";
import { h, replace } from "./dom.js";
import { dollars, duration, moment, percent, short, status, time } from "./format.js";
import { palette } from "./painter.js";
import { distribution } from "./spread.js";
import uPlot from "./vendor/uPlot.esm.js";

const RANGES = {
  "24h": "last day",
  "7d": "last week",
  "30d": "last month",
  "90d": "last quarter",
  "365d": "last year",
};
const BUCKETS = { "24h": "1h", "7d": "1h", "30d": "1d", "90d": "1d", "365d": "1d" };
const RUNS = 20;

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
      h("p", { class: "quiet" }, "Reading…"),
    );
    this.charts = [];
    this.picked = new Set([parameters.get("a"), parameters.get("b")].filter(Boolean));
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
      get(`${this.path}/executions`, { limit: RUNS }),
    ]);
    Object.assign(this, { metrics, trends, runs: runs.items });
    this.build();
    await this.compare();
  }

  build() {
    const { metrics, trends } = this;
    document.title = `${metrics.workflow_name} · Tachograph`;
    const range = h(
      "select",
      {
        id: "range",
        on: { change: () => this.app.go(`#/workflows/${encodeURIComponent(this.id)}?range=${range.value}`) },
      },
      Object.entries(RANGES).map(([value, text]) => h("option", { value, selected: value === this.range }, text)),
    );
    const facts = [
      ["Runs", String(metrics.total_executions)],
      ["Success", percent(metrics.success_rate)],
      ["Median", duration(metrics.p50)],
      ["95th percentile", duration(metrics.p95)],
      ["99th percentile", duration(metrics.p99)],
      ["Retries", String(metrics.retry_count)],
      metrics.cost_usd ? ["Cost", dollars(metrics.cost_usd)] : null,
      ["Last success", time(metrics.last_completed_at)],
    ].filter(Boolean);
    this.comparison = h("section", {
      class: "comparison",
      hidden: true,
      "aria-live": "polite",
      "aria-label": "Comparison",
    });
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
          h("a", { href: `#/?workflow=${encodeURIComponent(metrics.workflow_id)}` }, "Its runs"),
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
            trends.change_points.map((point) => h("li", { class: point.direction }, point.sentence)),
          )
        : null,
      this.comparison,
      h("div", { class: "charts" }, this.chartBoxes()),
      h("h2", {}, "Steps"),
      this.steps(),
      h("h2", {}, "Last runs"),
      h("p", { class: "quiet" }, "Pick two to compare them; pick one to compare it with what is usual."),
      this.lastRuns(),
    );
    this.draw();
  }

  chartBoxes() {
    const { buckets } = this.trends;
    if (!buckets.length) return [h("p", { class: "empty" }, "Nothing ended in this time.")];
    const seconds = (value) => duration(value);
    const whole = (value) => (Number.isInteger(value) ? String(value) : "");
    this.wanted = [
      {
        title: "Duration",
        format: seconds,
        series: [
          ["median", "completed", (b) => b.p50],
          ["95th percentile", "retrying", (b) => b.p95],
          ["99th percentile", "failed", (b) => b.p99],
        ],
      },
      {
        title: "Runs",
        format: whole,
        bars: true,
        series: [
          ["all", "running", (b) => b.total_executions],
          ["failed", "failed", (b) => b.failed_executions],
        ],
      },
      {
        title: "Success",
        format: (value) => percent(value, 0),
        low: 0,
        high: 100,
        series: [["success rate", "completed", (b) => b.success_rate]],
      },
    ];
    if (buckets.some((bucket) => bucket.cost_usd))
      this.wanted.push({
        title: "Cost",
        format: dollars,
        low: 0,
        series: [["US dollars", "critical", (b) => b.cost_usd]],
      });
    return this.wanted.map((chart) => {
      chart.box = h("div", { class: "plot" });
      return h("figure", { class: "chart" }, h("figcaption", {}, chart.title), chart.box, this.asTable(chart));
    });
  }

  /** What a chart shows, for those who cannot see it. */
  asTable(chart) {
    return h(
      "div",
      { class: "hidden" },
      h(
        "table",
        {},
        h("caption", {}, chart.title),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "from"),
            chart.series.map(([name]) => h("th", { scope: "col" }, name)),
          ),
        ),
        h(
          "tbody",
          {},
          this.trends.buckets.map((bucket) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, bucket.start),
              chart.series.map(([, , read]) => h("td", {}, chart.format(read(bucket)))),
            ),
          ),
        ),
      ),
    );
  }

  draw() {
    for (const chart of this.charts) chart.destroy();
    this.charts = [];
    const colours = palette();
    const { buckets } = this.trends;
    const at = buckets.map((bucket) => moment(bucket.start) / 1000);
    for (const { box, format, series, bars, low, high } of this.wanted ?? []) {
      const axis = {
        stroke: colours.quiet,
        grid: { stroke: colours.line, width: 1 },
        ticks: { stroke: colours.line, width: 1 },
        font: "11px system-ui",
      };
      const options = {
        width: Math.max(200, box.clientWidth),
        height: 190,
        legend: { live: true },
        cursor: { points: { size: 6 } },
        scales: {
          x: { time: true, range: [moment(this.trends.start) / 1000, moment(this.trends.end) / 1000] },
          y: { range: (_, from, to) => [low ?? 0, high ?? (to > 0 ? to * 1.1 : 1)] },
        },
        axes: [axis, { ...axis, size: 64, values: (_, values) => values.map(format) }],
        series: [
          {},
          ...series.map(([label, colour]) => ({
            label,
            stroke: colours[colour],
            width: 2,
            value: (_, value) => (value === null ? "–" : format(value)),
            ...(bars
              ? { fill: colours[colour], paths: uPlot.paths.bars({ size: [0.7, 40] }) }
              : { points: { show: buckets.length < 40, size: 5 } }),
          })),
        ],
      };
      this.charts.push(new uPlot(options, [at, ...series.map(([, , read]) => buckets.map(read))], box));
    }
    this.sizes ??= new ResizeObserver(() => {
      this.charts.forEach((chart, index) =>
        chart.setSize({ width: Math.max(200, this.wanted[index].box.clientWidth), height: 190 }),
      );
    });
    for (const { box } of this.wanted ?? []) this.sizes.observe(box);
  }

  steps() {
    const columns = [
      ["Step", (one) => one.step_name],
      ["Runs", (one) => one.count],
      ["Success", (one) => one.success_rate ?? 101],
      ["Median", (one) => one.p50 ?? 0],
      ["p95", (one) => one.p95 ?? 0],
      ["Waited", (one) => waited(one)],
      ["Retries", (one) => one.retry_count],
      ["Critical path", (one) => one.critical_path_share ?? 0],
      ["Cost", (one) => one.cost_usd],
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
        sorted.slice(0, 200).map((one) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, one.step_name),
            h("td", { class: "number" }, String(one.count)),
            h("td", { class: "number" }, percent(one.success_rate)),
            h("td", { class: "number" }, duration(one.p50)),
            h("td", { class: "number" }, duration(one.p95)),
            h("td", { class: "number" }, duration(waited(one))),
            h("td", { class: "number" }, String(one.retry_count)),
            h(
              "td",
              { class: "number share" },
              h("span", {
                class: "meter",
                "aria-hidden": "true",
                style: { "--part": String(one.critical_path_share ?? 0) },
              }),
              percent(100 * (one.critical_path_share ?? 0), 0),
            ),
            h("td", { class: "number" }, dollars(one.cost_usd)),
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
            ["Compare", "Status", "Run", "Started", "Duration", "Usual"].map((name) =>
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
                  "aria-label": `compare run ${short(run.execution_id)}`,
                  checked: this.picked.has(run.execution_id),
                  on: { change: (event) => this.pick(run.execution_id, event.target) },
                }),
              ),
              h("td", {}, status(run.status)),
              h("th", { scope: "row" }, h("a", { href: `#/executions/${run.execution_id}` }, short(run.execution_id))),
              h("td", {}, time(run.started_at ?? run.created_at)),
              h("td", { class: "number" }, duration(run.duration_seconds)),
              h(
                "td",
                {},
                this.metrics.distribution.length ? distribution(this.metrics, run.duration_seconds ?? 0, false) : null,
              ),
            ),
          ),
        ),
      ),
    );
  }

  pick(id, box) {
    if (box.checked) {
      // The one picked first makes room for a third.
      if (this.picked.size === 2) {
        const [first] = this.picked;
        this.picked.delete(first);
        const other = this.element.querySelector(`input[value="${CSS.escape(first)}"]`);
        if (other) other.checked = false;
      }
      this.picked.add(id);
    } else this.picked.delete(id);
    const [a, b] = this.picked;
    this.app.keep({ a: a ?? null, b: b ?? null });
    this.compare();
  }

  async compare() {
    const [a, b] = this.picked;
    this.comparison.hidden = !a;
    if (!a) return;
    try {
      // The later one is looked at, against the earlier.
      const [reference, looked] = b ? [a, b].sort() : [null, a];
      const found = await get(
        "api/workflows/executions/compare",
        b ? { a: reference, b: looked } : { execution: looked },
      );
      replace(
        this.comparison,
        h("h2", {}, b ? "Two runs" : "Against what is usual"),
        h("p", { class: "sentence" }, found.sentence),
        h(
          "p",
          { class: "quiet" },
          h("a", { href: `#/executions/${looked}` }, short(looked)),
          b
            ? [" against ", h("a", { href: `#/executions/${reference}` }, short(reference))]
            : found.baseline
              ? ` against ${found.baseline.execution_count} completed runs`
              : null,
        ),
        h(
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
                ["Step", "Took", "Before", "Difference", "Times", "Blame"].map((name, index) =>
                  h("th", { scope: "col", class: index ? "number" : null }, name),
                ),
              ),
            ),
            h(
              "tbody",
              {},
              found.steps
                .slice(0, 30)
                .map((step) =>
                  h(
                    "tr",
                    { class: step.step_name === found.culprit ? "culprit" : "" },
                    h(
                      "th",
                      { scope: "row" },
                      step.on_critical_path
                        ? h("span", { class: "critical", title: "on the critical path" }, "◆ ")
                        : null,
                      step.step_name,
                    ),
                    h("td", { class: "number" }, duration(step.seconds)),
                    h("td", { class: "number" }, duration(step.reference_seconds)),
                    h(
                      "td",
                      { class: "number" },
                      step.difference_seconds === null ? "–" : duration(step.difference_seconds),
                    ),
                    h("td", { class: "number" }, step.ratio === null ? "–" : `${Number(step.ratio.toPrecision(3))}×`),
                    h("td", { class: "number" }, step.blame ? percent(100 * step.blame, 0) : ""),
                  ),
                ),
            ),
          ),
        ),
      );
    } catch (problem) {
      replace(this.comparison, h("p", { class: "trouble" }, problem.message));
    }
  }

  search() {
    return false;
  }

  recolour() {
    this.draw();
  }

  close() {
    this.sizes?.disconnect();
    for (const chart of this.charts) chart.destroy();
  }
}

function waited(step) {
  return step.wait ? step.wait.dependency + step.wait.queue + step.wait.backoff : 0;
}

/** All workflows with what they did. */
export class WorkflowsView {
  constructor(app) {
    this.app = app;
    this.element = h("section", {}, h("h1", { tabindex: -1 }, "Workflows"), h("p", { class: "quiet" }, "Reading…"));
  }

  async open() {
    document.title = "Workflows · Tachograph";
    const found = await get("api/workflows/executions/stats");
    const rows = [...found.workflows].sort((a, b) => (b.last_ended_at ?? "").localeCompare(a.last_ended_at ?? ""));
    replace(
      this.element,
      h(
        "div",
        { class: "title" },
        h("h1", { tabindex: -1 }, "Workflows"),
        h("p", { class: "quiet" }, `${rows.length} with runs; ${found.running_executions} runs go on`),
      ),
      h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Workflows" },
        h(
          "table",
          { class: "figures" },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              ["Workflow", "Runs", "Going on", "Success", "Last ended"].map((name, index) =>
                h("th", { scope: "col", class: index && index < 4 ? "number" : null }, name),
              ),
            ),
          ),
          h(
            "tbody",
            {},
            rows.map((one) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, h("a", { href: `#/workflows/${one.workflow_id}` }, one.workflow_name)),
                h("td", { class: "number" }, String(one.total_executions)),
                h("td", { class: "number" }, String(one.running_executions)),
                h("td", { class: "number" }, percent(one.success_rate)),
                h("td", {}, time(one.last_ended_at)),
              ),
            ),
          ),
        ),
      ),
    );
  }

  search() {
    return false;
  }

  recolour() {}

  close() {}
}
