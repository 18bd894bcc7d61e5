// Charts of a workflow over time: durations, runs, success and cost.

import { h } from "../dom.js";
import { palette } from "../drawing/palette.js";
import { dollars, duration, parseTime, percent } from "../format.js";
import { showsUtc } from "../times.js";
import uPlot from "../vendor/uPlot.esm.js";

const CHART_HEIGHT = 190;

export class TrendCharts {
  /** `trends` is the response of `/trends`. Call `draw` once the element is on the page. */
  constructor(trends) {
    this.trends = trends;
    this.plots = [];
    this.specs = trends.buckets.length ? chartSpecs(trends.buckets) : [];
    this.element = h(
      "div",
      { class: "charts" },
      this.specs.length
        ? this.specs.map((chart) => {
            chart.box = h("div", { class: "plot" });
            return h("figure", { class: "chart" }, h("figcaption", {}, chart.title), chart.box, this.asTable(chart));
          })
        : h("p", { class: "empty" }, "No runs ended in this period."),
    );
  }

  /** A chart's data as a table for screen readers. */
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
    for (const plot of this.plots) plot.destroy();
    this.plots = [];
    const colours = palette();
    const { buckets } = this.trends;
    const at = buckets.map((bucket) => parseTime(bucket.start) / 1000);
    for (const { box, format, series, bars, low, high } of this.specs) {
      const axis = {
        stroke: colours.quiet,
        grid: { stroke: colours.line, width: 1 },
        ticks: { stroke: colours.line, width: 1 },
        font: "11px system-ui",
      };
      const options = {
        width: Math.max(200, box.clientWidth),
        height: CHART_HEIGHT,
        legend: { live: true },
        tzDate: (seconds) =>
          showsUtc() ? uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") : new Date(seconds * 1000),
        cursor: { points: { size: 6 } },
        scales: {
          x: { time: true, range: [parseTime(this.trends.start) / 1000, parseTime(this.trends.end) / 1000] },
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
      this.plots.push(new uPlot(options, [at, ...series.map(([, , read]) => buckets.map(read))], box));
    }
    this.resizeObserver ??= new ResizeObserver(() => {
      this.plots.forEach((plot, index) =>
        plot.setSize({ width: Math.max(200, this.specs[index].box.clientWidth), height: CHART_HEIGHT }),
      );
    });
    for (const { box } of this.specs) this.resizeObserver.observe(box);
  }

  close() {
    this.resizeObserver?.disconnect();
    for (const plot of this.plots) plot.destroy();
  }
}

function chartSpecs(buckets) {
  const seconds = (value) => duration(value);
  const integer = (value) => (Number.isInteger(value) ? String(value) : "");
  const specs = [
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
      format: integer,
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
    specs.push({
      title: "Cost",
      format: dollars,
      low: 0,
      series: [["US dollars", "critical", (b) => b.cost_usd]],
    });
  return specs;
}
