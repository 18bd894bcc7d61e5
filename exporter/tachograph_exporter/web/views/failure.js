// One cause of failures: its newest failure with the stack, where, in which version and on which host, and its runs.

import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { shortId } from "../format.js";
import { time } from "../times.js";
import { actions, badges, causeText, runs, said, trend } from "./failures.js";

const PAGE_SIZE = 50;

export class FailureView {
  constructor(app, id, parameters) {
    this.app = app;
    this.id = id;
    this.since = parameters.get("since") ?? "14d";
    this.occurrences = [];
    this.element = h("section", { class: "failures" }, h("h1", { tabindex: -1 }, "Failure"));
  }

  async open() {
    const path = `api/failures/${encodeURIComponent(this.id)}`;
    const detail = await get(path, { from: this.since, skip: this.occurrences.length, limit: PAGE_SIZE });
    this.occurrences.push(...detail.occurrences);
    document.title = `${causeText(detail.group)} · Tachograph`;
    this.show(detail, detail.group);
  }

  show(detail, group) {
    const { counts, example } = group;
    const rest = detail.total - this.occurrences.length;
    replace(
      this.element,
      h("div", { class: "causehead" }, h("h1", { tabindex: -1, class: "error-text" }, causeText(group)), trend(group)),
      h(
        "p",
        {},
        badges(group),
        said(group),
        actions(this.app, group, (changed) => {
          this.show(detail, { ...changed, example: example ?? changed.example });
          this.element.querySelector("button")?.focus();
        }),
        h("a", { href: `#/?failure=${encodeURIComponent(this.id)}` }, "Runs with it"),
      ),
      h(
        "dl",
        { class: "facts" },
        fact("Last", time(group.last_seen_at, "both")),
        fact("First", time(group.first_seen_at, "both")),
        fact("Failed attempts", counts.attempts.toLocaleString("en")),
        fact("Failed steps", counts.steps.toLocaleString("en")),
        fact("Failed runs", runs(counts.executions)),
      ),
      example?.error_message || example?.error_stack
        ? [
            h(
              "h2",
              {},
              "Newest: ",
              h(
                "a",
                { href: runAddress(example.execution_id) },
                `${example.workflow_name} ${shortId(example.execution_id)}`,
              ),
            ),
            h("p", { class: "error-text" }, example.error_message ?? ""),
            example.error_stack
              ? h("details", { open: true }, h("summary", {}, "Stack"), h("pre", { tabindex: 0 }, example.error_stack))
              : null,
          ]
        : null,
      h(
        "div",
        { class: "causetables" },
        table("Where", ["Workflow", "Step"], group.places, (place) => [
          h("a", { href: `#/workflows/${encodeURIComponent(place.workflow_id)}` }, place.workflow_name),
          place.step_name ?? "–",
        ]),
        table("Version", ["Workflow", "Version"], detail.by_version, (row) => [
          row.workflow_name,
          row.workflow_version,
        ]),
        table("Host", ["Host"], detail.by_host, (row) => [row.host]),
      ),
      h("h2", {}, "Failures ", h("span", { class: "quiet" }, detail.total.toLocaleString("en"))),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          {},
          h("thead", {}, h("tr", {}, ["When", "Run", "Step", "Attempt", "Version"].map(heading))),
          h("tbody", {}, this.occurrences.map(occurrence)),
        ),
      ),
      rest > 0
        ? h("button", { type: "button", on: { click: () => this.open().catch(this.app.showError) } }, "Load more")
        : null,
    );
  }

  search() {
    return false;
  }

  recolour() {}

  close() {}
}

const runAddress = (id) => `#/executions/${encodeURIComponent(id)}`;
const heading = (text) => h("th", { scope: "col" }, text);

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

function table(title, columns, rows, cells) {
  if (!rows.length) return null;
  return h(
    "table",
    {},
    h("caption", { class: "hidden" }, title),
    h("thead", {}, h("tr", {}, columns.map(heading), h("th", { scope: "col", class: "number" }, "Failures"))),
    h(
      "tbody",
      {},
      rows.map((row) =>
        h(
          "tr",
          {},
          cells(row).map((cell) => h("td", {}, cell)),
          h("td", { class: "number" }, row.failures.toLocaleString("en")),
        ),
      ),
    ),
  );
}

function occurrence(entry) {
  const step = entry.step_id ? `?selected=${encodeURIComponent(entry.step_id)}` : "";
  return h(
    "tr",
    {},
    h("td", {}, time(entry.at, "both")),
    h(
      "td",
      {},
      h("a", { href: runAddress(entry.execution_id) + step }, `${entry.workflow_name} ${shortId(entry.execution_id)}`),
    ),
    h("td", {}, entry.step_name ?? "–", entry.count > 1 ? ` ${entry.count.toLocaleString("en")}×` : ""),
    h("td", {}, entry.attempt ? `${entry.attempt}${entry.was_retried ? ", tried again" : ""}` : "–"),
    h("td", {}, entry.workflow_version || "–"),
  );
}
