// What someone on call asks first: what failed and why, what is slower than usual, what runs too long, what is late.

import { h, replace } from "../dom.js";
import { duration, shortened, STATUS_SYMBOLS, times } from "../format.js";
import { time } from "../times.js";

const MAX_ROWS = 5;
const MAX_NAME = 60;
const MAX_MESSAGE = 300;
export const SINCE = { "1h": "1 h", "12h": "12 h", "24h": "24 h", "3d": "3 d", "7d": "7 d" };

const runLink = (run, ...content) => h("a", { href: `#/executions/${encodeURIComponent(run.execution_id)}` }, content);

/** The blocks of an overview. */
export class OnCall {
  constructor() {
    this.element = h("div", { class: "oncall" });
    this.opened = new Set();
  }

  show(overview, since) {
    const range = `in the last ${SINCE[since] ?? since}`;
    const blocks = [
      this.block("failed", "Failed", overview.failures, failureRow, `${overview.failure_count} ${range}`),
      this.block("late", "Late", overview.late, lateRow),
      this.block("long", "Running too long", overview.running_too_long, longRow),
      this.block("slow", "Slower than usual", overview.slower, slowRow, range),
    ].filter(Boolean);
    const calm = ["failed", "is late", "runs too long", "was slower than usual"];
    const line = overview.ended_count
      ? `${overview.ended_count.toLocaleString("en")} runs ended ${range}`
      : `No run ended ${range}`;
    replace(
      this.element,
      blocks.length
        ? blocks
        : h(
            "p",
            { class: "calm" },
            h("span", { class: "status completed", "aria-hidden": "true" }, `${STATUS_SYMBOLS.completed} `),
            `${line}; nothing ${calm.join(", nothing ")}.`,
          ),
    );
  }

  block(kind, title, items, row, note = "") {
    if (!items.length) return null;
    const isOpen = this.opened.has(kind);
    const rest = items.length - MAX_ROWS;
    return h(
      "section",
      { class: `block ${kind}`, "aria-labelledby": `oncall-${kind}` },
      h("h2", { id: `oncall-${kind}` }, `${title} `, h("span", { class: "quiet" }, note || String(items.length))),
      h("ul", { class: "plain" }, items.slice(0, isOpen ? items.length : MAX_ROWS).map(row)),
      rest > 0 && !isOpen
        ? h(
            "button",
            {
              type: "button",
              class: "link",
              on: {
                click: (event) => {
                  this.opened.add(kind);
                  const list = event.target.previousElementSibling;
                  list.append(...items.slice(MAX_ROWS).map(row));
                  list.children[MAX_ROWS].querySelector("a")?.focus();
                  event.target.remove();
                },
              },
            },
            `Show ${rest} more`,
          )
        : null,
    );
  }
}

function name(text) {
  return h("b", { title: text }, shortened(text, MAX_NAME));
}

function failureRow(group) {
  const { error_type: type, error_message: message } = group;
  // Of a class its name; the executor's own words say which step failed.
  const kind = type?.startsWith("tachograph.errors.") && message ? null : type?.split(".").at(-1);
  const text = [kind, message].filter(Boolean).join(": ") || group.status;
  const [first] = group.workflows;
  return h(
    "li",
    { class: group.is_failing ? "failing" : "recovered" },
    h(
      "div",
      { class: "cause" },
      h("span", { class: `status ${group.status}`, title: group.status }, STATUS_SYMBOLS[group.status] ?? "✘"),
      " ",
      runLink(first.last, h("span", { class: "error-text", title: text.slice(0, 2000) }, text.slice(0, MAX_MESSAGE))),
    ),
    group.failure_group
      ? h("div", {}, h("a", { class: "quiet", href: `#/failures/${group.failure_group}` }, "this cause over time"))
      : null,
    group.workflows.slice(0, MAX_ROWS).map((workflow) => failingWorkflow(workflow)),
    group.workflows.length > MAX_ROWS
      ? h("div", { class: "quiet" }, `and ${group.workflows.length - MAX_ROWS} more workflows`)
      : null,
  );
}

function failingWorkflow(workflow) {
  const { last, recovered_by: recovered, running } = workflow;
  return h(
    "div",
    { class: "of" },
    runLink(last, name(workflow.workflow_name)),
    workflow.step_name ? h("span", { class: "in-step" }, ` in ${shortened(workflow.step_name, MAX_NAME)}`) : null,
    workflow.count > 1 ? ` ${workflow.count}×,` : null,
    h("span", { class: "quiet" }, workflow.count > 1 ? " last " : " ", time(last.completed_at, "both")),
    " ",
    recovered
      ? h("span", { class: "badge good" }, runLink(recovered, "recovered ", time(recovered.completed_at, "ago")))
      : h("span", { class: "badge bad" }, "still failing"),
    running ? [" ", h("span", { class: "badge" }, runLink(running, "running again"))] : null,
  );
}

function slowRow(workflow) {
  const { last } = workflow;
  return h(
    "li",
    {},
    runLink(last, name(workflow.workflow_name)),
    ` took ${duration(last.duration_seconds)}, `,
    h("b", { class: "slow-ratio" }, times(workflow.ratio)),
    h("span", { class: "quiet" }, ` usually ${duration(workflow.usual_p50)}`),
    workflow.of > 1 ? h("span", { class: "quiet" }, ` · ${workflow.count} of ${workflow.of} runs`) : null,
    h("span", { class: "quiet" }, " · ", time(last.completed_at, "ago")),
  );
}

function longRow(long) {
  return h(
    "li",
    {},
    h("span", { class: "status running", title: "running" }, STATUS_SYMBOLS.running),
    " ",
    runLink(long.run, name(long.workflow_name)),
    ` for ${duration(long.run.duration_seconds)}, `,
    h("b", { class: "slow-ratio" }, times(long.ratio)),
    h("span", { class: "quiet" }, ` usually ${duration(long.usual_p50)}`),
    h("span", { class: "quiet" }, " · started ", time(long.run.started_at, "ago")),
  );
}

function lateRow(late) {
  const { workflow_name: workflow, workflow_id: id, execution_id: run } = late;
  const text = late.text.replace(/^\S+: /, (start) => (start === `${workflow}: ` ? "" : start));
  return h(
    "li",
    {},
    h("span", { class: "status timeout", title: late.kind }, STATUS_SYMBOLS.timeout),
    " ",
    id ? h("a", { href: `#/workflows/${encodeURIComponent(id)}` }, name(workflow)) : name(workflow),
    " ",
    run ? runLink({ execution_id: run }, text) : text,
    h("span", { class: "quiet" }, " · since ", time(late.since, "both")),
  );
}
