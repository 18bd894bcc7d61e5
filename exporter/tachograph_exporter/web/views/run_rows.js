// The rows of the list of runs; kept up to date by events.

import { h, replace, setText } from "../dom.js";
import { distribution } from "../drawing/distribution.js";
import { duration, OPEN_STATUSES, parseTime, shortId, status, stepCounts } from "../format.js";
import { shortClock, time } from "../times.js";

const COLUMNS = ["Status", "Workflow", "Started", "Duration", "Usual", "Steps", "Run"];

export class RunRows {
  /** `usual(workflow id)` is what is known of its usual durations, or undefined. */
  constructor(usual) {
    this.usual = usual;
    this.items = new Map();
    this.body = h("tbody", {});
    this.element = h(
      "table",
      { class: "list", on: { keydown: (event) => this.key(event) } },
      h("caption", { class: "hidden" }, "Runs, newest first unless sorted otherwise"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          COLUMNS.map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      this.body,
    );
  }

  /** Show the items in their order; without any, `empty`. */
  render(empty) {
    const rowsById = new Map(
      [...this.body.children].filter((row) => row.dataset.id).map((row) => [row.dataset.id, row]),
    );
    const rows = [...this.items.values()].map((item) => this.row(item, rowsById.get(item.execution_id)));
    if (!rows.length) rows.push(h("tr", { class: "none" }, h("td", { colspan: COLUMNS.length }, empty())));
    // Only rows whose position changed are moved, so that focus and selection stay.
    rows.forEach((row, index) => {
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
    });
    while (this.body.children.length > rows.length) this.body.lastChild.remove();
  }

  row(item, existing) {
    const usual = this.usual(item.workflow_id);
    const isOpen = OPEN_STATUSES.has(item.status);
    const counts = `${item.completed_step_count} ${item.failed_step_count} ${item.skipped_step_count} ${item.step_count}`;
    const end = isOpen && item.expected_end_at ? `until about ${shortClock(new Date(item.expected_end_at))}` : "";
    const known = `${usual?.count} ${usual?.p50} ${end}`;
    const key = `${item.status} ${item.started_at} ${item.duration_seconds} ${counts} ${known}`;
    if (existing?.dataset.key === key) return existing;
    const seconds = secondsOf(item);
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
        h("a", { href: `#/executions/${item.execution_id}`, title: item.workflow_name }, item.workflow_name),
        item.error_message
          ? h("span", { class: "why", title: item.error_message.slice(0, 2000) }, item.error_message.slice(0, 500))
          : null,
        end ? h("span", { class: "eta" }, end) : null,
      ),
      h("td", {}, time(item.started_at ?? item.created_at, "both")),
      h("td", { class: "number", data: { live: isOpen ? "1" : "" } }, duration(seconds)),
      h("td", {}, usual ? distribution(usual, seconds, isOpen) : h("span", { class: "distribution" })),
      h("td", { class: "number" }, stepCounts(item)),
      h("td", {}, h("code", { title: item.execution_id }, shortId(item.execution_id))),
    );
    if (hadFocus) row.querySelector("a").focus({ preventScroll: true });
    return row;
  }

  /** Durations of open runs grow without events. */
  tick() {
    for (const row of this.body.children) {
      const cell = row.querySelector("[data-live='1']");
      const item = cell && this.items.get(row.dataset.id);
      if (item) setText(cell, duration(secondsOf(item)));
    }
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

  focusFirst() {
    this.body.querySelector("a")?.focus();
  }
}

function secondsOf(item) {
  if (!OPEN_STATUSES.has(item.status)) return item.duration_seconds;
  const start = parseTime(item.started_at ?? item.created_at);
  return start === null ? null : Math.max(0, (Date.now() - start) / 1000);
}

/** A run as its first event tells of it. */
export function itemOf({ workflow_execution_id: id, workflow_id: workflow, data, timestamp }) {
  return {
    execution_id: id,
    workflow_id: workflow,
    workflow_name: data.workflow_name,
    status: data.status,
    created_at: data.started_at ?? data.created_at ?? timestamp,
    started_at: null,
    completed_at: null,
    duration_seconds: null,
    expected_end_at: null,
    step_count: 0,
    completed_step_count: 0,
    failed_step_count: 0,
    skipped_step_count: 0,
    error_message: null,
  };
}
