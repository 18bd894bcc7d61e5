// The list of runs, live, with filters and each run's duration against the usual ones.

import { get } from "../api.js";
import { debounce } from "../debounce.js";
import { h, replace, setText } from "../dom.js";
import { distribution } from "../drawing/distribution.js";
import {
  duration,
  EXECUTION_STATUSES,
  OPEN_STATUSES,
  parseTime,
  shortId,
  status,
  STATUS_SYMBOLS,
  time,
} from "../format.js";
import { EventStream } from "../stream.js";

const PAGE_SIZE = 50;
const MAX_ROWS = 500;
const RANGES = { "": "any time", "1h": "last hour", "24h": "last day", "7d": "last week", "30d": "last month" };
const METRICS_MAX_AGE_MS = 60_000;
const METRICS_RETRY_MS = 5_000;

export class RunsView {
  constructor(app, parameters) {
    this.app = app;
    this.parameters = parameters;
    this.items = new Map();
    this.usual = new Map();
    this.pending = new Set();
    this.count = 0;
    this.next = null;
    this.element = h("section", { class: "runs" });
    this.readSoon = debounce(() => this.read(), 300);
  }

  async open() {
    document.title = "Runs · Tachograph";
    const { items } = await get("api/workflows", { limit: 1000, include_steps: false });
    this.workflows = items;
    this.build();
    await this.read();
    this.stream = new EventStream("ws/workflows/stream", {
      types: [
        "workflow_queued",
        "workflow_started",
        "workflow_completed",
        "workflow_failed",
        "workflow_cancelled",
        "step_completed",
        "step_failed",
        "step_skipped",
      ].join(","),
      onReload: () => this.read(),
      onState: (state) => this.app.setConnection(state),
      onMessages: (messages) => this.apply(messages),
    });
    this.clock = setInterval(() => this.tick(), 1000);
  }

  get filter() {
    const { parameters } = this;
    return {
      workflow: parameters.get("workflow") ?? "",
      status: (parameters.get("status") ?? "").split(",").filter(Boolean),
      from: parameters.get("from") ?? "",
      to: parameters.get("to") ?? "",
      min_duration: parameters.get("min_duration") ?? "",
      text: parameters.get("q") ?? "",
      sort: parameters.get("sort") ?? "-created",
    };
  }

  /** Change the filter. It is kept in the address, so that it can be shared. */
  setFilter(values) {
    this.app.setParameters(values);
    for (const [name, value] of Object.entries(values)) {
      if (value) this.parameters.set(name, value);
      else this.parameters.delete(name);
    }
    this.readSoon();
  }

  build() {
    const { filter } = this;
    const isChosen = ({ id, name }) => id === filter.workflow || name === filter.workflow;
    const unlisted =
      filter.workflow && !this.workflows.some(isChosen)
        ? [h("option", { value: filter.workflow, selected: true }, filter.workflow)]
        : [];
    const workflow = h(
      "select",
      { id: "workflow", on: { change: () => this.setFilter({ workflow: workflow.value }) } },
      h("option", { value: "" }, "all workflows"),
      unlisted,
      this.workflows.map((item) => h("option", { value: item.id, selected: isChosen(item) }, item.name)),
    );
    const range = h(
      "select",
      { id: "range", on: { change: () => this.setFilter({ from: range.value, to: "" }) } },
      Object.entries({ ...RANGES, ...(filter.from in RANGES ? {} : { [filter.from]: `since ${filter.from}` }) }).map(
        ([value, text]) => h("option", { value, selected: value === filter.from }, text),
      ),
    );
    const length = h("input", {
      id: "length",
      type: "text",
      inputmode: "text",
      placeholder: "e.g. 30s",
      size: 7,
      value: filter.min_duration,
      on: { change: () => this.setFilter({ min_duration: length.value.trim() }) },
    });
    const text = h("input", {
      id: "text",
      type: "search",
      placeholder: "error contains…",
      value: filter.text,
      on: { input: debounce(() => this.setFilter({ q: text.value.trim() }), 300) },
    });
    this.searchField = text;
    const chips = h(
      "fieldset",
      { class: "chips" },
      h("legend", {}, "Status"),
      EXECUTION_STATUSES.map((word) => {
        const box = h("input", {
          type: "checkbox",
          id: `s-${word}`,
          value: word,
          checked: filter.status.includes(word),
          on: {
            change: () =>
              this.setFilter({
                status: [...chips.querySelectorAll("input:checked")].map((checked) => checked.value).join(","),
              }),
          },
        });
        return h(
          "label",
          { class: `chip ${word}`, for: `s-${word}` },
          box,
          h("span", { "aria-hidden": "true" }, STATUS_SYMBOLS[word]),
          ` ${word}`,
        );
      }),
    );
    const sort = h(
      "select",
      { id: "sort", on: { change: () => this.setFilter({ sort: sort.value === "-created" ? "" : sort.value }) } },
      Object.entries({ "-created": "newest", "-duration": "longest", duration: "shortest" }).map(([value, name]) =>
        h("option", { value, selected: value === filter.sort }, name),
      ),
    );
    const field = (name, label, element) =>
      h("label", { class: "choice", for: name }, h("span", { class: "quiet" }, label), element);
    this.summary = h("p", { class: "quiet", "aria-live": "polite" }, " ");
    this.error = h("p", { class: "error-text", role: "alert", hidden: true });
    this.rows = h("tbody", {});
    this.more = h("button", { type: "button", hidden: true, on: { click: () => this.read(true) } }, "Load more");
    const table = h(
      "table",
      { class: "list", on: { keydown: (event) => this.key(event) } },
      h("caption", { class: "hidden" }, "Runs, newest first unless sorted otherwise"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["Status", "Workflow", "Started", "Duration", "Usual", "Steps", "Run"].map((name) =>
            h("th", { scope: "col" }, name),
          ),
        ),
      ),
      this.rows,
    );
    replace(
      this.element,
      h("div", { class: "title" }, h("h1", { tabindex: -1 }, "Runs"), this.summary),
      h(
        "form",
        { class: "filters", role: "search", "aria-label": "Runs", on: { submit: (event) => event.preventDefault() } },
        chips,
        field("workflow", "Workflow", workflow),
        field("range", "Time", range),
        field("length", "At least", length),
        field("text", "Error", text),
        field("sort", "Order", sort),
      ),
      this.error,
      table,
      this.more,
    );
  }

  async read(more = false) {
    const { filter } = this;
    const path = filter.workflow
      ? `api/workflows/${encodeURIComponent(filter.workflow)}/executions`
      : "api/workflows/executions";
    const query = {
      status: filter.status.join(","),
      from: filter.from,
      to: filter.to,
      min_duration: filter.min_duration,
      error: filter.text,
      sort: filter.sort,
      limit: PAGE_SIZE,
      after: more ? this.next : null,
    };
    this.reading?.abort();
    this.reading = new AbortController();
    try {
      const page = await get(path, query, this.reading);
      this.count = page.total;
      this.next = page.next;
      if (!more) this.items.clear();
      for (const item of page.items) this.items.set(item.execution_id, item);
      this.error.hidden = true;
      this.render();
      this.readProgress(page.items.filter((item) => OPEN_STATUSES.has(item.status)));
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.error.hidden = false;
      setText(this.error, problem.message);
    }
  }

  /** Read the step counts of open runs; the list only counts the steps of ended ones. */
  async readProgress(items) {
    await Promise.all(
      items.slice(0, PAGE_SIZE).map(async (item) => {
        try {
          const state = await get(`api/workflows/executions/${item.execution_id}/status`);
          for (const name of ["step_count", "completed_step_count", "failed_step_count", "skipped_step_count"])
            item[name] = Math.max(item[name], state[name]);
        } catch {
          // Counted from now on, by events.
        }
      }),
    );
    if (items.length) this.render();
  }

  /** Update rows with events. A new run is added on top if it passes the filter. */
  apply(messages) {
    const { filter } = this;
    const canAddRuns = !filter.text && !filter.min_duration && filter.sort === "-created" && !filter.to;
    let isStale = false;
    let isNew = false;
    for (const message of messages) {
      const { data, event_type: type } = message;
      const id = message.workflow_execution_id;
      let item = this.items.get(id);
      if (type.startsWith("step_")) {
        if (!item || !OPEN_STATUSES.has(item.status)) continue;
        if (type === "step_completed") item.completed_step_count += 1;
        else if (type === "step_failed") item.failed_step_count += 1;
        else item.skipped_step_count += 1;
        continue;
      }
      if (type === "workflow_failed") this.app.announce(message.message);
      if (!item) {
        if (!canAddRuns) {
          isStale = true;
          continue;
        }
        if (filter.workflow && filter.workflow !== message.workflow_id && filter.workflow !== data.workflow_name)
          continue;
        item = {
          execution_id: id,
          workflow_id: message.workflow_id,
          workflow_name: data.workflow_name,
          status: data.status,
          created_at: data.started_at ?? data.created_at ?? message.timestamp,
          started_at: null,
          completed_at: null,
          duration_seconds: null,
          step_count: 0,
          completed_step_count: 0,
          failed_step_count: 0,
          skipped_step_count: 0,
          error_message: null,
        };
        isNew = true;
        this.count += 1;
      }
      Object.assign(
        item,
        Object.fromEntries(Object.entries(data).filter(([name, value]) => name in item && value !== undefined)),
      );
      if (filter.status.length && !filter.status.includes(item.status)) {
        if (this.items.delete(id)) this.count -= 1;
        continue;
      }
      this.items.set(id, item);
      if (!OPEN_STATUSES.has(item.status) && this.usual.has(item.workflow_id))
        this.usual.get(item.workflow_id).isOutdated = true;
    }
    if (isNew) {
      const sorted = [...this.items.values()]
        .sort((a, b) => parseTime(b.created_at) - parseTime(a.created_at))
        .slice(0, MAX_ROWS);
      this.items = new Map(sorted.map((item) => [item.execution_id, item]));
    }
    if (isStale) this.readSoon();
    this.render();
  }

  render() {
    const items = [...this.items.values()];
    const running = items.filter((item) => OPEN_STATUSES.has(item.status)).length;
    setText(this.summary, `${this.count} ${this.count === 1 ? "run" : "runs"}${running ? `, ${running} running` : ""}`);
    const rowsById = new Map(
      [...this.rows.children].filter((row) => row.dataset.id).map((row) => [row.dataset.id, row]),
    );
    const rows = items.map((item) => this.row(item, rowsById.get(item.execution_id)));
    if (!rows.length)
      rows.push(
        h("tr", { class: "none" }, h("td", { colspan: 7 }, "No runs match. Run a workflow, or clear a filter.")),
      );
    // Only rows whose position changed are moved, so that focus and selection stay.
    rows.forEach((row, index) => {
      if (this.rows.children[index] !== row) this.rows.insertBefore(row, this.rows.children[index] ?? null);
    });
    while (this.rows.children.length > rows.length) this.rows.lastChild.remove();
    this.more.hidden = !this.next;
    for (const id of new Set(items.map((item) => item.workflow_id))) this.readMetrics(id);
  }

  row(item, existing) {
    const usual = this.usual.get(item.workflow_id);
    const key = `${item.status} ${item.started_at} ${item.duration_seconds} ${item.completed_step_count} ${item.failed_step_count} ${item.skipped_step_count} ${item.step_count} ${usual?.at ?? 0}`;
    if (existing?.dataset.key === key) return existing;
    const seconds = this.seconds(item);
    const done = item.completed_step_count + item.failed_step_count + item.skipped_step_count;
    const row = existing ?? h("tr", { data: { id: item.execution_id } });
    const hadFocus = row.contains(document.activeElement);
    row.dataset.key = key;
    row.className = item.status;
    replace(
      row,
      h("td", {}, status(item.status)),
      h(
        "th",
        { scope: "row" },
        h(
          "a",
          { href: `#/executions/${item.execution_id}`, title: item.error_message ?? item.workflow_name },
          item.workflow_name,
        ),
        item.error_message ? h("span", { class: "why" }, item.error_message) : null,
      ),
      h("td", { data: { label: "Started" } }, time(item.started_at ?? item.created_at)),
      h(
        "td",
        { class: "number", data: { label: "Duration", live: OPEN_STATUSES.has(item.status) ? "1" : "" } },
        duration(seconds),
      ),
      h(
        "td",
        {},
        usual?.metrics
          ? distribution(usual.metrics, seconds, OPEN_STATUSES.has(item.status))
          : h("span", { class: "distribution" }),
      ),
      h(
        "td",
        { class: "number", data: { label: "Steps" } },
        item.step_count ? `${done}/${item.step_count}` : String(done || "–"),
      ),
      h("td", {}, h("code", { title: item.execution_id }, shortId(item.execution_id))),
    );
    if (hadFocus) row.querySelector("a").focus({ preventScroll: true });
    return row;
  }

  seconds(item) {
    if (!OPEN_STATUSES.has(item.status)) return item.duration_seconds;
    const start = parseTime(item.started_at ?? item.created_at);
    return start === null ? null : Math.max(0, (Date.now() - start) / 1000);
  }

  tick() {
    for (const row of this.rows.children) {
      const cell = row.querySelector("[data-live='1']");
      const item = cell && this.items.get(row.dataset.id);
      if (item) setText(cell, duration(this.seconds(item)));
    }
  }

  /**
   * Read a workflow's usual durations: once, and again after one of its runs has ended, at most once a minute. A read
   * that failed is repeated; until then the column is empty or shows what was read before.
   */
  async readMetrics(id) {
    const usual = this.usual.get(id);
    if (this.pending.has(id) || (usual && !usual.isOutdated)) return;
    this.pending.add(id);
    let delay = METRICS_MAX_AGE_MS;
    try {
      this.usual.set(id, { at: Date.now(), metrics: await get(`api/workflows/${id}/metrics`, { from: "30d" }) });
      requestAnimationFrame(() => this.render());
    } catch (problem) {
      // Another read would fail, too: the workflow was deleted.
      if (problem.status === 404) return;
      delay = METRICS_RETRY_MS;
    }
    setTimeout(() => {
      this.pending.delete(id);
      if (!this.isClosed) this.render();
    }, delay);
  }

  key(event) {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const row = event.target.closest("tr");
    const other = event.key === "ArrowDown" ? row?.nextElementSibling : row?.previousElementSibling;
    const link = other?.querySelector("a");
    if (link) {
      event.preventDefault();
      link.focus();
    }
  }

  search() {
    this.searchField?.focus();
    return true;
  }

  first() {
    this.rows.querySelector("a")?.focus();
  }

  recolour() {}

  close() {
    this.isClosed = true;
    this.stream?.close();
    this.reading?.abort();
    this.readSoon.cancel();
    clearInterval(this.clock);
  }
}
