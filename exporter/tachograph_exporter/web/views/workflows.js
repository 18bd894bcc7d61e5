// The list of workflows.

import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { percent, time } from "../format.js";

/** The list of workflows that have runs. */
export class WorkflowsView {
  constructor(app) {
    this.app = app;
    this.element = h("section", {}, h("h1", { tabindex: -1 }, "Workflows"), h("p", { class: "quiet" }, "Loading…"));
  }

  async open() {
    document.title = "Workflows · Tachograph";
    const stats = await get("api/workflows/executions/stats");
    const rows = [...stats.workflows].sort((a, b) => (b.last_ended_at ?? "").localeCompare(a.last_ended_at ?? ""));
    replace(
      this.element,
      h(
        "div",
        { class: "title" },
        h("h1", { tabindex: -1 }, "Workflows"),
        h("p", { class: "quiet" }, `${rows.length} with runs; ${stats.running_executions} runs in progress`),
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
              ["Workflow", "Runs", "Running", "Success", "Last ended"].map((name, index) =>
                h("th", { scope: "col", class: index && index < 4 ? "number" : null }, name),
              ),
            ),
          ),
          h(
            "tbody",
            {},
            rows.map((workflow) =>
              h(
                "tr",
                {},
                h(
                  "th",
                  { scope: "row" },
                  h("a", { href: `#/workflows/${workflow.workflow_id}` }, workflow.workflow_name),
                ),
                h("td", { class: "number" }, String(workflow.total_executions)),
                h("td", { class: "number" }, String(workflow.running_executions)),
                h("td", { class: "number" }, percent(workflow.success_rate)),
                h("td", {}, time(workflow.last_ended_at)),
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
