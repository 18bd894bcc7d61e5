// The night at one look: what ran, what did not, and who waited for whom, live.

import { get } from "../api.js";
import { debounce } from "../debounce.js";
import { h, replace, setText } from "../dom.js";
import { duration, status } from "../format.js";
import { MAX_ROWS, NightChart, textOf } from "../drawing/night_chart.js";
import { Night } from "../night.js";
import { EventStream } from "../stream.js";
import { throttle } from "../throttle.js";
import { time } from "../times.js";
import { nightTable, relation } from "./night_table.js";
import { NightWindow, readWindow } from "./night_window.js";

const EVENT_TYPES = [
  "workflow_started",
  "workflow_resumed",
  "workflow_completed",
  "workflow_failed",
  "workflow_cancelled",
];
/** What is expected comes with time, without an event. */
const EVERY_MS = 30_000;
const READ_MS = 4_000;
const MAX_RELATIONS = 30;

export class NightView {
  constructor(app, parameters) {
    this.app = app;
    this.parameters = parameters;
    this.element = h(
      "section",
      { class: "night" },
      h("h1", { tabindex: -1 }, "Night"),
      h("p", { class: "quiet" }, "Loading…"),
    );
    this.readSoon = throttle(() => this.read(), READ_MS);
    this.showSoon = debounce(() => this.show(), 150);
  }

  async open() {
    document.title = "Night · Tachograph";
    await this.read({ isFirst: true });
    this.stream = new EventStream("ws/workflows/stream", {
      types: EVENT_TYPES.join(","),
      onReload: () => this.isRead && this.readSoon(),
      onState: (state) => this.app.setConnection(state),
      onMessages: (messages) => this.apply(messages),
    });
    this.clock = setInterval(() => this.chart.draw(), 1000);
    this.timer = setInterval(() => !document.hidden && this.isLive && this.readSoon(), EVERY_MS);
  }

  get window() {
    return readWindow(this.parameters);
  }

  get isLive() {
    return this.night && this.night.to > Date.now() - 2 * EVERY_MS;
  }

  async read({ isFirst = false } = {}) {
    const { from, to } = this.window;
    this.reading?.abort();
    this.reading = new AbortController();
    try {
      const query = { from: new Date(from).toISOString(), to: new Date(to).toISOString() };
      const answer = await get("api/night", query, this.reading);
      if (this.isClosed) return;
      this.night = new Night(answer);
      this.isRead = true;
    } catch (problem) {
      if (problem.name === "AbortError") return;
      if (isFirst) throw problem;
      this.app.showError(problem);
      return;
    }
    if (!this.chart) this.build();
    this.chooser.show(this.window);
    this.show();
  }

  build() {
    this.chart = new NightChart({
      onSelect: (item) => this.selected(item),
      onOpen: (item) => this.openItem(item),
    });
    this.chooser = new NightWindow((values) => this.choose(values));
    this.sentence = h("p", { class: "night-sentence", "aria-live": "polite" });
    this.detail = h("div", { class: "night-detail", "aria-live": "polite" });
    this.more = h("p", { class: "quiet", hidden: true });
    this.filter = h("input", {
      type: "search",
      id: "night-filter",
      placeholder: "Workflow",
      "aria-label": "Only workflows with this in their name",
      value: this.parameters.get("workflow") ?? "",
      on: { input: () => this.setFilter() },
    });
    this.troubled = this.box("Only what went wrong", "troubled", () => this.setFilter());
    this.arrows = this.box("All arrows", "arrows", () => {
      this.setParameters({ arrows: this.arrows.checked ? "1" : "" });
      this.chart.showsEdges = this.arrows.checked;
      this.chart.draw();
    });
    this.chart.showsEdges = this.arrows.checked;
    this.table = h("details", { class: "night-table", on: { toggle: () => this.showTable() } });
    replace(
      this.element,
      h("div", { class: "title" }, h("h1", { tabindex: -1 }, "Night"), this.chooser.element),
      this.sentence,
      h(
        "div",
        { class: "filters" },
        this.filter,
        this.troubled.parentElement,
        this.arrows.parentElement,
        h("a", { class: "aside", href: "#/notices" }, "Notices"),
      ),
      this.chart.element,
      this.more,
      this.detail,
      legend(),
      this.table,
    );
  }

  box(text, name, onChange) {
    const input = h("input", { type: "checkbox", checked: this.parameters.has(name), on: { change: onChange } });
    h("label", { class: "choice" }, input, text);
    return input;
  }

  setParameters(values) {
    this.app.setParameters(values);
    for (const [name, value] of Object.entries(values)) {
      if (value) this.parameters.set(name, value);
      else this.parameters.delete(name);
    }
  }

  choose(values) {
    this.setParameters(values);
    this.chart.view = null;
    this.read();
  }

  setFilter() {
    this.setParameters({ workflow: this.filter.value.trim(), troubled: this.troubled.checked ? "1" : "" });
    this.showSoon();
  }

  get rows() {
    const text = (this.parameters.get("workflow") ?? "").toLowerCase();
    return this.night.rows.filter(
      (row) => row.name.toLowerCase().includes(text) && (row.isTroubled || !this.parameters.has("troubled")),
    );
  }

  show() {
    if (this.isClosed) return;
    const { night, rows } = this;
    setText(this.sentence, night.rows.length ? night.sentence() : "Nothing ran, and nothing was expected to.");
    this.sentence.classList.toggle(
      "bad",
      rows.some((row) => row.missing || row.failed),
    );
    const hidden = rows.length - MAX_ROWS;
    this.more.hidden = hidden <= 0 && night.isComplete;
    setText(
      this.more,
      [
        night.isComplete ? "" : "There is more than can be shown: the newest is. Choose a shorter time.",
        hidden > 0 ? `${hidden} more workflows; filter them by name.` : "",
      ].join(" "),
    );
    this.chart.element.hidden = !rows.length;
    this.chart.show(night, rows);
    const wanted = this.parameters.get("run");
    if (wanted && !this.chart.selected && night.byId.has(wanted))
      this.chart.select(night.byId.get(wanted), { isQuiet: true });
    this.showDetail(this.chart.selected);
    this.showTable();
  }

  showTable() {
    const summary = h("summary", {}, "As a table");
    replace(this.table, summary, this.table.open ? nightTable(this.night, this.rows) : null);
  }

  selected(item) {
    this.setParameters({ run: item?.id ?? "" });
    this.showDetail(item);
  }

  /** What is selected, and what it waited for. Stays as it is while nothing about it changes. */
  showDetail(item) {
    const key = item && `${textOf(item, 0)} ${item.eta} ${this.night.edgesOf.get(item)?.length}`;
    if (key === this.detailKey) return;
    this.detailKey = key;
    replace(this.detail, item ? (item.id ? this.runDetail(item) : startDetail(item)) : null);
  }

  runDetail(run) {
    const edges = this.night.edgesOf.get(run) ?? [];
    return [
      h(
        "p",
        {},
        status(run.status),
        " ",
        h("b", {}, run.row.name),
        " ",
        time(new Date(run.start).toISOString()),
        run.end === null
          ? [" and still running", run.eta === null ? "" : [", until about ", time(new Date(run.eta).toISOString())]]
          : [" to ", time(new Date(run.end).toISOString()), `, ${duration((run.end - run.start) / 1000)}`],
        " · ",
        h("a", { href: `#/executions/${encodeURIComponent(run.id)}` }, "Open the run"),
      ),
      edges.length
        ? h(
            "ul",
            { class: "plain relations" },
            edges.slice(0, MAX_RELATIONS).map((edge) => this.relationLine(edge, run)),
            edges.length > MAX_RELATIONS ? h("li", {}, `and ${edges.length - MAX_RELATIONS} more`) : null,
          )
        : null,
    ];
  }

  relationLine(edge, run) {
    const { text, other } = relation(edge, run);
    const [before, after] = text.split("{}");
    return h(
      "li",
      { class: edge.kind },
      before,
      h(
        "button",
        {
          type: "button",
          class: "link",
          // The night may have been read again since this line was written.
          on: { click: () => this.chart.select(this.night.byId.get(other.id) ?? other) },
        },
        `${other.row.name} ${timeText(other)}`,
      ),
      after,
    );
  }

  openItem(item) {
    if (item.id) this.app.navigate(`#/executions/${encodeURIComponent(item.id)}`);
    else if (item.row.workflowId) this.app.navigate(`#/workflows/${encodeURIComponent(item.row.workflowId)}`);
    else this.app.navigate("#/notices");
  }

  apply(messages) {
    let isChanged = false;
    for (const message of messages) {
      if (message.event_type === "workflow_failed") this.app.announce(message.message);
      this.night.apply(message);
      isChanged = true;
    }
    if (!isChanged) return;
    this.chart.draw();
    // Expectations, arrows and the order of the rows are the service's.
    if (this.isLive) this.readSoon();
  }

  search() {
    this.filter?.focus();
    return Boolean(this.filter);
  }

  first() {
    this.chart?.first();
    return true;
  }

  recolour() {
    this.chart?.recolour();
    if (this.chooser) this.chooser.show(this.window);
    this.detailKey = undefined;
    if (this.night) this.showDetail(this.chart.selected);
  }

  close() {
    this.isClosed = true;
    this.stream?.close();
    this.reading?.abort();
    this.readSoon.cancel();
    this.showSoon.cancel();
    this.chart?.close();
    clearInterval(this.clock);
    clearInterval(this.timer);
  }
}

function timeText(run) {
  const text = time(new Date(run.start).toISOString()).textContent;
  return text.slice(0, -3);
}

function startDetail(item) {
  return h("p", {}, h("span", { class: "status failed" }, "✘ "), textOf(item, 0), ".");
}

function legend() {
  const entries = [
    ["missing", "did not start"],
    ["failed", "failed"],
    ["timeout", "timed out"],
    ["lost", "lost"],
    ["running", "running, hatched: until it is expected to end"],
    ["late", "late"],
    ["due", "due"],
  ];
  return h(
    "ul",
    { class: "night-legend plain", "aria-hidden": "true" },
    entries.map(([kind, text]) => h("li", {}, h("span", { class: `sign ${kind}` }), text)),
  );
}
