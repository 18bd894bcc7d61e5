// The first view: what someone on call asks, then the runs, live, with filters and how long they usually take.

import { get } from "../api.js";
import { labelledSelect } from "../controls.js";
import { debounce } from "../debounce.js";
import { h, replace, setText } from "../dom.js";
import { OPEN_STATUSES, parseTime } from "../format.js";
import { EventStream } from "../stream.js";
import { throttle } from "../throttle.js";
import { OnCall, SINCE } from "./oncall.js";
import { isAll, readFilter, RunFilters } from "./run_filters.js";
import { itemOf, RunRows } from "./run_rows.js";

const PAGE_SIZE = 50;
const MAX_ROWS = 500;
const OVERVIEW_INTERVAL_MS = 10_000;
const OVERVIEW_RETRY_MS = 5_000;
const EVENT_TYPES = [
  "workflow_queued",
  "workflow_started",
  "workflow_resumed",
  "workflow_completed",
  "workflow_failed",
  "workflow_cancelled",
  "step_completed",
  "step_failed",
  "step_skipped",
];

export class RunsView {
  constructor(app, parameters) {
    this.app = app;
    this.parameters = parameters;
    this.usual = new Map();
    this.count = 0;
    this.next = null;
    this.element = h("section", { class: "runs" });
    this.readSoon = debounce(() => this.read(), 300);
    this.readOverviewSoon = throttle(() => this.readOverview(), OVERVIEW_INTERVAL_MS);
    this.rememberSoon = debounce(() => this.remember(), 150);
    this.onScroll = () => this.rememberSoon();
  }

  get filter() {
    return readFilter(this.parameters);
  }

  get since() {
    const since = this.parameters.get("since") ?? "12h";
    return since in SINCE ? since : "12h";
  }

  async open() {
    document.title = "Runs · Tachograph";
    this.build();
    // Back shows as many rows as there were.
    await this.readAll(this.app.remembered.rows ?? 0);
    this.stream = new EventStream("ws/workflows/stream", {
      types: EVENT_TYPES.join(","),
      onReload: () => this.readAll(),
      onState: (state) => this.app.setConnection(state),
      onMessages: (messages) => this.apply(messages),
    });
    this.clock = setInterval(() => this.rows.tick(), 1000);
    window.addEventListener("scroll", this.onScroll, { passive: true });
    if (this.parameters.has("search")) {
      this.search();
      this.app.setParameters({ search: null });
    }
  }

  build() {
    this.onCall = new OnCall();
    this.filters = new RunFilters(this.filter, (values, isStep, isReset) => this.setFilter(values, isStep, isReset));
    this.rows = new RunRows((id) => this.usual.get(id));
    this.summary = h("p", { class: "quiet", "aria-live": "polite" }, " ");
    this.error = h("p", { class: "error-text", role: "alert", hidden: true });
    this.more = h(
      "button",
      { type: "button", hidden: true, on: { click: () => this.read({ isMore: true }) } },
      "Load more",
    );
    const since = labelledSelect("Look back", SINCE, this.since, (value) => {
      this.setParameter("since", value === "12h" ? "" : value);
      this.readOverview();
    });
    replace(
      this.element,
      h(
        "div",
        { class: "title" },
        h("h1", { tabindex: -1 }, "Runs"),
        this.summary,
        since,
        h("a", { href: "#/night" }, "The night at one look"),
      ),
      this.onCall.element,
      this.filters.element,
      this.error,
      this.rows.element,
      this.more,
    );
    this.element.addEventListener("click", () => this.remember(), { capture: true });
  }

  remember() {
    this.app.remember({ scroll: window.scrollY, rows: this.rows.items.size });
  }

  setParameter(name, value, isStep = false) {
    this.app.setParameters({ [name]: value }, { isStep });
    if (value) this.parameters.set(name, value);
    else this.parameters.delete(name);
  }

  /** Change the filter. It is kept in the address, so that it can be shared. */
  setFilter(values, isStep, isReset) {
    this.app.setParameters(values, { isStep });
    for (const [name, value] of Object.entries(values)) {
      if (value) this.parameters.set(name, value);
      else this.parameters.delete(name);
    }
    if (isReset) {
      const filters = new RunFilters(this.filter, (...change) => this.setFilter(...change));
      filters.showWorkflows(this.workflows ?? []);
      this.filters.element.replaceWith(filters.element);
      this.filters = filters;
    }
    this.filters.update(this.filter);
    this.onCall.element.hidden = !isAll(this.filter);
    this.readSoon();
  }

  /** Read what is shown again: of the newest runs in one request. */
  readAll(count = this.rows.items.size) {
    const { filter } = this;
    const rows = Math.max(PAGE_SIZE, Math.min(count, MAX_ROWS));
    if (isAll(filter) && filter.sort === "-created") return this.readOverview({ rows, withRuns: true });
    return Promise.all([this.read({ rows }), this.readOverview()]);
  }

  /** Read the overview, with the newest runs in it when the list shows just these. */
  async readOverview({ rows = 1, withRuns = false } = {}) {
    clearTimeout(this.overviewTimer);
    const { filter } = this;
    try {
      const overview = await get("api/overview", { since: this.since, limit: rows });
      this.onCall.show(overview, this.since);
      this.workflows = overview.workflows;
      this.filters.showWorkflows(overview.workflows);
      this.usual = new Map(overview.workflows.map((item) => [item.workflow_id, item.usual]));
      // Unless the filter was changed meanwhile.
      if (withRuns && isAll(this.filter) && this.filter.sort === filter.sort) {
        this.show(overview.runs);
        this.isShown = true;
      } else this.render();
    } catch (problem) {
      if (withRuns && !this.isShown) throw problem;
      // The list stays without; read again, unless the view was left meanwhile.
      if (!this.isClosed) this.overviewTimer = setTimeout(() => this.readOverview(), OVERVIEW_RETRY_MS);
    }
  }

  async read({ isMore = false, rows = PAGE_SIZE } = {}) {
    const { filter } = this;
    const path = filter.workflow
      ? `api/workflows/${encodeURIComponent(filter.workflow)}/executions`
      : "api/workflows/executions";
    const query = {
      status: filter.status.join(","),
      from: filter.from,
      to: filter.to,
      min_duration: filter.min_duration,
      failure: filter.failure,
      q: filter.text,
      sort: filter.sort,
      limit: isMore ? PAGE_SIZE : Math.max(rows, Math.min(this.rows.items.size, MAX_ROWS)),
      after: isMore ? this.next : null,
    };
    this.reading?.abort();
    this.reading = new AbortController();
    try {
      this.show(await get(path, query, this.reading), isMore);
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.error.hidden = false;
      setText(this.error, problem.message);
    }
  }

  show(page, isMore = false) {
    this.count = page.total;
    this.next = page.next;
    if (!isMore) this.rows.items.clear();
    for (const item of page.items) this.rows.items.set(item.execution_id, item);
    this.error.hidden = true;
    this.render();
  }

  /** Update rows with events. A new run is added on top if it passes the filter. */
  apply(messages) {
    const { filter } = this;
    const { items } = this.rows;
    const canAddRuns =
      !filter.text && !filter.min_duration && !filter.failure && filter.sort === "-created" && !filter.to;
    let isStale = false;
    let isNew = false;
    for (const message of messages) {
      const { data, event_type: type } = message;
      const id = message.workflow_execution_id;
      let item = items.get(id);
      if (type.startsWith("step_")) {
        if (!item || !OPEN_STATUSES.has(item.status)) continue;
        if (type === "step_completed") item.completed_step_count += 1;
        else if (type === "step_failed") item.failed_step_count += 1;
        else item.skipped_step_count += 1;
        continue;
      }
      if (type === "workflow_failed") this.app.announce(message.message);
      this.readOverviewSoon();
      if (!item) {
        if (!canAddRuns) {
          isStale = true;
          continue;
        }
        if (filter.workflow && filter.workflow !== message.workflow_id && filter.workflow !== data.workflow_name)
          continue;
        item = itemOf(message);
        isNew = true;
        this.count += 1;
      }
      Object.assign(
        item,
        Object.fromEntries(Object.entries(data).filter(([name, value]) => name in item && value !== undefined)),
      );
      if (filter.status.length && !filter.status.includes(item.status)) {
        if (items.delete(id)) this.count -= 1;
        continue;
      }
      items.set(id, item);
    }
    if (isNew) {
      const sorted = [...items.values()]
        .sort((a, b) => parseTime(b.created_at) - parseTime(a.created_at))
        .slice(0, MAX_ROWS);
      this.rows.items = new Map(sorted.map((item) => [item.execution_id, item]));
    }
    if (isStale) this.readSoon();
    this.render();
  }

  render() {
    const running = [...this.rows.items.values()].filter((item) => OPEN_STATUSES.has(item.status)).length;
    const count = `${this.count.toLocaleString("en")} ${this.count === 1 ? "run" : "runs"}`;
    setText(this.summary, `${count}${running ? `, ${running} running` : ""}`);
    // Someone who looks for something finds it, or that there is nothing, at the top.
    this.onCall.element.hidden = !isAll(this.filter);
    this.rows.render(() => this.empty());
    this.more.hidden = !this.next;
  }

  /** What to do when there are no runs. */
  empty() {
    if (!isAll(this.filter))
      return [
        h("p", {}, "No runs match. "),
        h("p", { class: "quiet" }, "The search looks into ids, workflows and errors; clear a filter to see more."),
      ];
    return [
      h("p", {}, "No runs yet: nothing has been recorded in this workspace."),
      h("p", { class: "quiet" }, "Record a command, a Python function, or a workflow of the examples:"),
      h("pre", {}, "tachograph demo\n\n@tachograph.workflow\ndef nightly(): ...   # import tachograph"),
      h("p", { class: "quiet" }, "Other engines send OpenTelemetry spans here. ", h("a", { href: "docs" }, "The API")),
    ];
  }

  search() {
    this.filters.search.focus();
    this.filters.search.select();
    return true;
  }

  first() {
    this.rows.focusFirst();
  }

  recolour() {}

  close() {
    this.isClosed = true;
    this.stream?.close();
    this.reading?.abort();
    this.readSoon.cancel();
    this.readOverviewSoon.cancel();
    this.rememberSoon.cancel();
    clearInterval(this.clock);
    clearTimeout(this.overviewTimer);
    window.removeEventListener("scroll", this.onScroll);
  }
}
