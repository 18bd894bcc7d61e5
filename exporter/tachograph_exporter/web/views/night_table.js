// The night as a table: the same as the chart, for screen readers and for everybody who prefers words.

import { h } from "../dom.js";
import { duration, STATUS_SYMBOLS } from "../format.js";
import { clock } from "../times.js";

const MAX_LISTED = 50;

/** A table of rows of a night, with the starts that did not come and the runs that are not over or ended badly. */
export function nightTable(night, rows) {
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "The night as a table" },
    h(
      "table",
      { class: "figures" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["Workflow", "Runs", "Did not start", "Late", "Failed", "Running", "Waited for"].map((name) =>
            h("th", { scope: "col" }, name),
          ),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((row) => line(night, row)),
      ),
    ),
  );
}

function line(night, row) {
  const name = row.workflowId
    ? h("a", { href: `#/workflows/${encodeURIComponent(row.workflowId)}` }, row.name)
    : row.name;
  const states = (state) => row.starts.filter((start) => start.state === state);
  const failed = row.runs.filter((run) => ["failed", "timeout", "lost"].includes(run.status));
  const running = row.runs.filter((run) => run.end === null);
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, name),
    h("td", {}, String(row.runs.length)),
    h(
      "td",
      { class: row.missing ? "error-text" : "" },
      listed(states("missing"), (start) => at(start.at)),
    ),
    h(
      "td",
      {},
      listed(states("late"), (start) => `${at(start.at)}, by ${duration((start.startedAt - start.at) / 1000)}`),
    ),
    h(
      "td",
      {},
      listed(failed, (run) => runLink(run, `${STATUS_SYMBOLS[run.status]} ${run.status} ${at(run.start)}`)),
    ),
    h(
      "td",
      {},
      listed(running, (run) =>
        runLink(run, `since ${at(run.start)}${run.eta === null ? "" : `, until about ${at(run.eta)}`}`),
      ),
    ),
    h(
      "td",
      {},
      listed(waited(night, row), (text) => text),
    ),
  );
}

function listed(items, show) {
  if (!items.length) return "–";
  const shown = items.slice(0, MAX_LISTED).map((item, index) => [index ? "; " : "", show(item)]);
  return items.length > MAX_LISTED ? [shown, ` and ${items.length - MAX_LISTED} more`] : shown;
}

function runLink(run, text) {
  return h("a", { href: `#/executions/${encodeURIComponent(run.id)}` }, text);
}

function at(ms) {
  return clock(new Date(ms)).slice(0, 5);
}

/** Workflows that the runs of a row waited for, each once. */
function waited(night, row) {
  const texts = new Set();
  for (const run of row.runs)
    for (const edge of night.edgesOf.get(run) ?? [])
      if (edge.kind === "nested" ? edge.source === run : edge.target === run)
        texts.add(relation(edge, run).text.replace("{}", relation(edge, run).other.row.name));
  return [...texts];
}

/** What an edge means to one of its runs: `{text, other}`; `{}` in the text is the other run. */
export function relation(edge, run) {
  const isSource = edge.source === run;
  const other = isSource ? edge.target : edge.source;
  const step = edge.step ? ` in step ${edge.step}` : "";
  const datasets = edge.datasets.join(", ");
  const texts = {
    nested: [`${run.end === null ? "waits" : "waited"} for {}${step}`, `ran inside {}${step}`],
    trigger: [`started {}${step}`, `was started by {}${step}`],
    dataset: [`wrote ${datasets} for {}`, `read ${datasets} from {}`],
  };
  return { text: texts[edge.kind][isSource ? 0 : 1], other };
}
