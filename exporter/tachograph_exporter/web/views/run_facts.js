// The figures of a run above its drawing.

import { h, replace } from "../dom.js";
import { distribution } from "../drawing/distribution.js";
import { dollars, duration, parseTime, percent, shortId, stepCounts } from "../format.js";
import { now } from "../now.js";
import { clock, time } from "../times.js";
import { runResources } from "./resources.js";

const UNSUCCESSFUL = new Set(["failed", "timeout", "lost"]);

/** How many of a run's steps are in which state, and how often they were tried again. */
export function countSteps(run) {
  const counts = { completed: 0, failed: 0, skipped: 0, running: 0, retries: 0 };
  for (const step of run.steps) {
    const word = UNSUCCESSFUL.has(step.status) ? "failed" : step.status === "retrying" ? "running" : step.status;
    if (word in counts) counts[word] += 1;
    counts.retries += Math.max(0, step.attempts.length - 1);
  }
  counts.total = Math.max(run.timeline.step_count, run.steps.length);
  return counts;
}

/** How far an open run is, and when it is expected to end. */
export function progress(run) {
  const counts = countSteps(run);
  const ended = counts.completed + counts.failed + counts.skipped;
  const parts = [`${ended} of ${counts.total} steps ended${counts.running ? `, ${counts.running} running` : ""}`];
  const { usual_duration_seconds: usual, expected_end_at: end } = run.timeline;
  if (usual) {
    parts.push(`usually ${duration(usual)}`);
    const over = run.length() - usual * 1000;
    const left = end ? parseTime(end) - now() : -1;
    if (left > 0) parts.push(`about ${duration(Math.ceil(left / 1000))} left, until ${clock(new Date(end))}`);
    else if (over > 0) parts.push(`${duration(Math.ceil(over / 1000))} longer than usual already`);
  }
  for (const step of run.steps) {
    const wait = step.status === "retrying" && step.retryAt ? step.retryAt - (now() - run.origin) : 0;
    if (wait > 0) parts.push(`“${step.name}” tries again in ${duration(Math.ceil(wait / 1000))}`);
  }
  return `${parts.slice(0, 5).join("; ")}.`;
}

export class RunFacts {
  /** `links` are elements for the facts that lead elsewhere: `{ id, parent, trace }`. */
  constructor(run, links) {
    this.run = run;
    this.links = links;
    this.element = h("dl", { class: "facts" });
  }

  update(metrics) {
    const facts = this.list(metrics).filter(Boolean);
    // Only changed figures are replaced, so that nothing jumps under the pointer or is announced again.
    facts.forEach(([name, value, more], index) => {
      let row = this.element.children[index];
      const text = typeof value === "string" ? value : value.textContent;
      const key = `${name} ${text} ${Boolean(more)}`;
      if (row?.dataset.key === key) return;
      row = h("div", { data: { key } }, h("dt", {}, name), h("dd", {}, value, more));
      if (this.element.children[index]) this.element.children[index].replaceWith(row);
      else this.element.append(row);
    });
    while (this.element.children.length > facts.length) this.element.lastChild.remove();
  }

  list(metrics) {
    const { run, links } = this;
    const { timeline } = run;
    const length = (run.isOpen ? null : timeline.total_duration_seconds) ?? run.length() / 1000;
    const counts = countSteps(run);
    const share = !run.isOpen && length ? (100 * timeline.critical_path_seconds) / length : null;
    const steps = stepCounts({
      status: run.status,
      step_count: counts.total,
      completed_step_count: counts.completed,
      failed_step_count: counts.failed,
      skipped_step_count: counts.skipped,
    });
    return [
      ["Duration", duration(length), metrics?.distribution.length ? distribution(metrics, length, run.isOpen) : null],
      ["Started", time(timeline.started_at, "both")],
      ["Steps", steps],
      counts.retries ? ["Retries", String(counts.retries)] : null,
      run.isOpen ? null : ["Critical path", `${duration(timeline.critical_path_seconds)} (${percent(share, 0)})`],
      run.isOpen || timeline.parallelism === null ? null : ["Parallelism", timeline.parallelism.toFixed(2)],
      ...(run.isOpen ? [] : runResources(timeline)),
      timeline.cost_usd ? ["Cost", dollars(timeline.cost_usd)] : null,
      timeline.tokens_in || timeline.tokens_out
        ? ["Tokens", `${timeline.tokens_in.toLocaleString()} in, ${timeline.tokens_out.toLocaleString()} out`]
        : null,
      ["Run", links.id],
      links.parent ? ["Inside run", links.parent] : null,
      ["Trace", links.trace],
    ];
  }
}

/** The run's inputs; folded if they are long. */
export function inputsOf({ input_summary: inputs }) {
  if (!inputs || !Object.keys(inputs).length) return null;
  const text = Object.entries(inputs)
    .map(([name, value]) => `${name} = ${JSON.stringify(value)}`)
    .join(", ");
  if (text.length < 120)
    return h("p", { class: "inputs" }, h("span", { class: "quiet" }, "Inputs "), h("code", {}, text));
  return h(
    "details",
    { class: "inputs" },
    h("summary", {}, "Inputs"),
    h("pre", { tabindex: 0 }, JSON.stringify(inputs, null, 2)),
  );
}

/** A shortened id with a button that copies all of it. */
export function copyableId(id, announce) {
  const button = h(
    "button",
    {
      type: "button",
      class: "copy",
      title: `Copy ${id}`,
      "aria-label": "Copy the run id",
      on: {
        click: async () => {
          await navigator.clipboard?.writeText(id);
          replace(button, "copied");
          announce("Run id copied.");
          setTimeout(() => replace(button, "copy"), 1500);
        },
      },
    },
    "copy",
  );
  return h("span", {}, h("code", { title: id }, shortId(id)), " ", button);
}
