// The workflows: last result, a strip of the last runs, median and trend; sorted, searched, and live.

import { get } from "../api.js";
import { debounce } from "../debounce.js";
import { h, replace, setText, svg } from "../dom.js";
import { duration, OPEN_STATUSES, percent, status, STATUS_SYMBOLS, times } from "../format.js";
import { EventStream } from "../stream.js";
import { throttle } from "../throttle.js";
import { time } from "../times.js";

const READ_INTERVAL_MS = 3_000;
const STRIP_HEIGHT = 24;
const BAR_WIDTH = 6;
const STRIP_RUNS = 20;
/** Ratios of the last runs to the usual median that are shown as no change. */
const STEADY = [0.95, 1.05];
const FAILURES = ["failed", "timeout", "lost"];

const COLUMNS = [
  { name: "Workflow", value: (row) => row.workflow_name.toLowerCase(), cell: nameCell },
  { name: "Last run", value: (row) => lastRank(row), cell: (row) => (row.last ? lastCell(row) : "–") },
  { name: "Last 20", cell: strip },
  { name: "Median", value: (row) => row.p50 ?? -1, cell: (row) => duration(row.p50), isNumber: true },
  { name: "Trend", value: (row) => row.trend ?? 0, cell: (row) => trend(row), isNumber: true },
  {
    name: "Success",
    value: (row) => row.success_rate ?? 101,
    cell: (row) => percent(row.success_rate),
    isNumber: true,
  },
  {
    name: "Runs, 7 d",
    value: (row) => row.recent_executions,
    cell: (row) => number(row.recent_executions),
    isNumber: true,
  },
  { name: "Running", value: (row) => row.open_executions, cell: (row) => number(row.open_executions), isNumber: true },
];
const LAST = 1;

export class WorkflowsView {
  constructor(app, parameters) {
    this.app = app;
    this.parameters = parameters;
    this.element = h("section", {}, h("h1", { tabindex: -1 }, "Workflows"), h("p", { class: "quiet" }, "Loading…"));
    this.rows = [];
    this.readSoon = throttle(() => this.read(), READ_INTERVAL_MS);
    const index = COLUMNS.findIndex(({ name }) => name === (parameters.get("sort") ?? "").replace("-", ""));
    this.by = index < 0 ? LAST : index;
    this.isDescending = index < 0 || parameters.get("sort").startsWith("-");
  }

  async open() {
    document.title = "Workflows · Tachograph";
    this.rows = (await get("api/overview/workflows")).items;
    this.build();
    this.stream = new EventStream("ws/workflows/stream", {
      types: "workflow_started,workflow_resumed,workflow_completed,workflow_failed,workflow_cancelled",
      onReload: () => this.read(),
      onState: (state) => this.app.setConnection(state),
      onMessages: () => this.readSoon(),
    });
  }

  async read() {
    try {
      this.rows = (await get("api/overview/workflows")).items;
      this.fill();
    } catch {
      // What was known stays, and the page says so.
    }
  }

  build() {
    this.summary = h("p", { class: "quiet", "aria-live": "polite" });
    this.body = h("tbody", {});
    this.text = h("input", {
      type: "search",
      id: "find-workflow",
      placeholder: "workflow name",
      "aria-label": "Search workflows",
      value: this.parameters.get("q") ?? "",
      on: {
        input: debounce(() => {
          this.app.setParameters({ q: this.text.value.trim() });
          this.fill();
        }, 150),
      },
    });
    this.heads = COLUMNS.map((column, index) =>
      h(
        "th",
        { scope: "col", class: column.isNumber ? "number" : null },
        column.value
          ? h("button", { type: "button", class: "sort", on: { click: () => this.sortBy(index) } }, column.name)
          : column.name,
      ),
    );
    replace(
      this.element,
      h("div", { class: "title" }, h("h1", { tabindex: -1 }, "Workflows"), this.summary, this.text),
      h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Workflows" },
        h("table", { class: "figures workflows" }, h("thead", {}, h("tr", {}, this.heads)), this.body),
      ),
    );
    this.fill();
  }

  sortBy(index) {
    this.isDescending = this.by === index ? !this.isDescending : index !== 0;
    this.by = index;
    this.app.setParameters({ sort: `${this.isDescending ? "-" : ""}${COLUMNS[index].name}` });
    this.fill();
  }

  fill() {
    const query = this.text.value.trim().toLowerCase();
    const { value } = COLUMNS[this.by];
    const sign = this.isDescending ? -1 : 1;
    const shown = this.rows
      .filter((row) => row.workflow_name.toLowerCase().includes(query))
      .sort((a, b) => sign * compare(value(a), value(b)) || a.workflow_name.localeCompare(b.workflow_name));
    const failing = this.rows.filter((row) => FAILURES.includes(row.last?.status)).length;
    const running = this.rows.reduce((sum, row) => sum + row.open_executions, 0);
    setText(
      this.summary,
      `${this.rows.length} workflows; ${failing} failed last; ${running} ${running === 1 ? "run" : "runs"} in progress`,
    );
    this.heads.forEach((head, index) => {
      if (!COLUMNS[index].value) return;
      head.setAttribute("aria-sort", index === this.by ? (this.isDescending ? "descending" : "ascending") : "none");
    });
    // Unchanged rows stay, so that focus and selection do.
    const known = new Map([...this.body.children].map((row) => [row.dataset.key, row]));
    const rows = shown.map((row) => {
      const key = JSON.stringify(row);
      return (
        known.get(key) ??
        h(
          "tr",
          { data: { key } },
          COLUMNS.map((column, index) => cell(column, index, row)),
        )
      );
    });
    const hadFocus = this.body.contains(document.activeElement) && document.activeElement.getAttribute("href");
    replace(this.body, rows.length ? rows : this.none(query));
    if (hadFocus) this.body.querySelector(`a[href="${CSS.escape(hadFocus)}"]`)?.focus({ preventScroll: true });
  }

  none(query) {
    return h(
      "tr",
      { class: "none" },
      h(
        "td",
        { colspan: COLUMNS.length },
        query
          ? `No workflow's name contains “${query}”.`
          : "No workflows yet. A workflow appears with its first run, or when it is registered: POST /api/workflows.",
      ),
    );
  }

  search() {
    this.text?.focus();
    return Boolean(this.text);
  }

  first() {
    this.body?.querySelector("a")?.focus();
  }

  recolour() {}

  close() {
    this.stream?.close();
    this.readSoon.cancel();
  }
}

function compare(a, b) {
  return typeof a === "string" ? a.localeCompare(b) : a - b;
}

function number(value) {
  return value ? value.toLocaleString("en") : "–";
}

/** Failed ones first, then by time. */
function lastRank(row) {
  if (!row.last) return 0;
  return (FAILURES.includes(row.last.status) ? 1e16 : 0) + Date.parse(row.last.completed_at ?? row.last.started_at);
}

function cell(column, index, row) {
  const content = column.cell(row);
  if (!index) return h("th", { scope: "row" }, content);
  return h("td", { class: column.isNumber ? "number" : null, data: { label: column.name } }, content);
}

function nameCell(row) {
  return h("a", { href: `#/workflows/${row.workflow_id}`, title: row.workflow_name }, row.workflow_name);
}

function lastCell({ last }) {
  return [
    h("a", { class: "last", href: `#/executions/${last.execution_id}` }, status(last.status)),
    " ",
    h("span", { class: "quiet" }, time(last.completed_at ?? last.started_at, "ago")),
  ];
}

/** The last runs: a bar each, as high as it took long, in the colour of its status. */
function strip(row) {
  const runs = row.strip;
  if (!runs.length) return "–";
  const longest = Math.max(...runs.map((run) => run.duration_seconds ?? 0), 1e-9);
  const failed = runs.filter((run) => FAILURES.includes(run.status)).length;
  return svg(
    "svg",
    {
      class: "strip",
      width: STRIP_RUNS * BAR_WIDTH,
      height: STRIP_HEIGHT,
      viewBox: `0 0 ${STRIP_RUNS * BAR_WIDTH} ${STRIP_HEIGHT}`,
      role: "img",
      "aria-label": `the last ${runs.length} runs: ${failed} failed, the longest ${duration(longest)}`,
    },
    runs.map((run, index) => {
      const height = Math.max(3, ((run.duration_seconds ?? 0) / longest) * (STRIP_HEIGHT - 2));
      return svg(
        "rect",
        {
          class: `bar ${run.status}${OPEN_STATUSES.has(run.status) ? " open" : ""}`,
          x: (STRIP_RUNS - runs.length + index) * BAR_WIDTH,
          y: STRIP_HEIGHT - height,
          width: BAR_WIDTH - 1,
          height,
          on: { click: () => (location.hash = `#/executions/${run.execution_id}`) },
        },
        svg(
          "title",
          {},
          `${STATUS_SYMBOLS[run.status] ?? ""} ${run.status}, ${duration(run.duration_seconds)}, ${run.started_at}`,
        ),
      );
    }),
  );
}

function trend({ trend: ratio, usual_seconds: usual }) {
  if (ratio === null) return h("span", { class: "quiet" }, "–");
  const title = `the last 5 completed runs against a median of ${duration(usual)}`;
  if (ratio >= STEADY[0] && ratio <= STEADY[1]) return h("span", { class: "quiet", title }, "steady");
  const text =
    ratio >= 2 || ratio <= 0.5 ? times(ratio) : `${ratio > 1 ? "+" : "−"}${percent(100 * Math.abs(ratio - 1), 0)}`;
  return h("span", { class: ratio > 1 ? "slow-ratio" : "fast-ratio", title }, `${ratio > 1 ? "▲" : "▼"} ${text}`);
}
