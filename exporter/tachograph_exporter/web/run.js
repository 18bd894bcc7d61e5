// A run as the page draws it: read from a timeline, kept up to date by events. Times are ms since the run started.

import { OPEN_STATUSES, parseTime } from "./format.js";
import { now as currently } from "./now.js";

/** Statuses that a step never leaves. `lost` is not among them: a late event can still tell the real outcome. */
const FINAL = new Set(["completed", "failed", "skipped", "cancelled", "timeout"]);

const UNSUCCESSFUL = new Set(["failed", "timeout", "lost"]);
/** A step takes notably longer than usual from this ratio on, if that is this share of the run. */
const MIN_RATIO = 1.3;
const MIN_SHARE = 0.03;
const MIN_USUAL = 5;

export class Run {
  constructor(timeline) {
    this.read(timeline);
  }

  /** Replace everything with what a timeline says. */
  read(timeline) {
    this.timeline = timeline;
    this.id = timeline.execution_id;
    this.status = timeline.status;
    this.origin = parseTime(timeline.started_at) ?? currently();
    this.end = this.since(timeline.completed_at);
    this.lastSeen = this.since(timeline.last_seen_at);
    this.steps = timeline.step_timeline.map((entry, index) => this.step(entry, index));
    this.byId = new Map(this.steps.map((step) => [step.id, step]));
    this.expect(this.definition);
    this.link();
  }

  /** What each step usually takes, by its id: `{ seconds, ratio, isSlow }`. */
  usual = new Map();

  /** Read a comparison with usual runs: where each bar usually ends, and which steps take notably longer. */
  compare(comparison) {
    const { baseline } = comparison;
    const isKnown = baseline && baseline.execution_count >= MIN_USUAL;
    const least = MIN_SHARE * (this.length() / 1000);
    this.usual = new Map(
      comparison.steps
        .filter((step) => step.step_id && step.reference_seconds !== null)
        .map((step) => [
          step.step_id,
          {
            seconds: step.reference_seconds,
            ratio: step.ratio,
            isSlow: isKnown && step.ratio >= MIN_RATIO && step.difference_seconds >= least,
          },
        ]),
    );
  }

  /** Add the steps of the workflow's definition that an open run has not reached yet. */
  expect(definition) {
    this.definition = definition;
    if (!definition?.steps || !this.isOpen) return;
    const names = new Map(this.steps.map((step) => [step.entry.step_name, step]));
    const ids = (name) => names.get(name)?.id ?? `pending ${name}`;
    for (const [index, step] of definition.steps.entries()) {
      if (names.has(step.name)) continue;
      const entry = emptyEntry(`pending ${step.name}`, {
        step_name: step.name,
        step_type: step.step_type,
        step_order: step.step_order ?? index,
        depends_on: (step.depends_on_steps ?? []).map(ids),
      });
      const pending = this.step(entry, this.steps.length);
      pending.isExpected = true;
      this.steps.push(pending);
      this.byId.set(pending.id, pending);
    }
  }

  since(text) {
    const at = parseTime(text);
    return at === null ? null : at - this.origin;
  }

  step(entry, index) {
    return {
      id: entry.step_id,
      name: entry.folded ? `${entry.step_name} ×${entry.folded.count.toLocaleString("en")} more` : entry.step_name,
      index,
      entry,
      status: entry.status,
      start: this.since(entry.started_at),
      end: this.since(entry.completed_at),
      attempts: entry.attempts.map((attempt) => ({
        number: attempt.attempt,
        status: attempt.status,
        start: this.since(attempt.started_at),
        end: this.since(attempt.completed_at),
        queue: attempt.queue_seconds * 1000,
        backoff: attempt.backoff_seconds * 1000,
        error: attempt.error_message,
      })),
      // How long it waited for its scheduled time.
      scheduled: (entry.wait?.scheduled ?? 0) * 1000,
      dependsOn: entry.depends_on,
      dependents: [],
      parent: entry.parent_step_id,
      isCritical: entry.on_critical_path,
      depth: 0,
      // When its last dependency ended: the start of the line in its row.
      ready: null,
    };
  }

  /** Derive each step's dependents, depth in the graph, and the time it was ready. */
  link() {
    for (const step of this.steps) step.dependents = [];
    for (const step of this.steps) {
      for (const id of step.dependsOn) this.byId.get(id)?.dependents.push(step);
    }
    const waiting = new Map(this.steps.map((step) => [step, step.dependsOn.filter((id) => this.byId.has(id)).length]));
    const next = this.steps.filter((step) => waiting.get(step) === 0);
    for (const step of this.steps) step.depth = 0;
    for (let i = 0; i < next.length; i += 1) {
      for (const later of next[i].dependents) {
        later.depth = Math.max(later.depth, next[i].depth + 1);
        waiting.set(later, waiting.get(later) - 1);
        if (waiting.get(later) === 0) next.push(later);
      }
    }
    for (const step of this.steps) {
      let ready = 0;
      const parent = this.byId.get(step.parent);
      if (parent?.start) ready = parent.start;
      for (const id of step.dependsOn) {
        const end = this.byId.get(id)?.end;
        if (end !== null && end !== undefined && (step.start === null || end <= step.start))
          ready = Math.max(ready, end);
      }
      step.ready = ready;
    }
  }

  get isOpen() {
    return OPEN_STATUSES.has(this.status);
  }

  /** The run's duration in ms, so far if it is open. */
  length(now = currently()) {
    if (this.end !== null) return this.end;
    if (this.status === "lost")
      return this.lastSeen ?? this.steps.reduce((latest, step) => Math.max(latest, step.end ?? 0), 0);
    return Math.max(0, now - this.origin);
  }

  /** The time at which a step's bar ends; null if the step has not started. */
  barEnd(step, now) {
    if (step.end !== null) return step.end;
    return step.start === null ? null : this.length(now);
  }

  /** Apply an event. Returns whether it changed more than the message tells, so that a new timeline is needed. */
  apply(message) {
    const { event_type: type, data } = message;
    if (type.startsWith("workflow_")) {
      this.status = data.status;
      if (type === "workflow_started") this.origin = parseTime(data.started_at) ?? this.origin;
      if (data.completed_at) this.end = this.since(data.completed_at);
      if (type === "workflow_resumed") this.end = null;
      return type === "workflow_resumed" || !OPEN_STATUSES.has(data.status);
    }
    let step = this.byId.get(message.workflow_step_id);
    if (!step) {
      if (!data.step_order && data.step_order !== 0) return false;
      step = this.addStep(message);
    }
    switch (type) {
      case "step_started":
        this.stepStarted(step, data);
        return false;
      case "step_retrying":
        this.stepRetrying(step, data);
        return false;
      case "step_completed":
      case "step_failed":
      case "step_skipped":
        this.stepFinished(step, data);
        return true;
      case "steps_folded":
        return true;
      default:
        return type === "step_logged" || type === "step_measured" || type === "step_cost";
    }
  }

  /** Add a step that the timeline did not have. */
  addStep({ workflow_step_id: id, data }) {
    const entry = emptyEntry(id, {
      step_name: data.step_name,
      step_type: data.step_type,
      step_order: data.step_order,
      depends_on: data.depends_on ?? [],
      parent_step_id: data.parent_step_id,
      child_execution_id: data.child_execution_id,
    });
    const expected = this.byId.get(`pending ${data.step_name}`);
    const step = this.step(entry, expected?.index ?? this.steps.length);
    if (expected) this.replace(expected, step);
    else this.steps.push(step);
    this.byId.set(id, step);
    this.link();
    return step;
  }

  /** The real step takes the place of the one that was expected. */
  replace(expected, step) {
    this.byId.delete(expected.id);
    this.steps[expected.index] = step;
    for (const other of this.steps) other.dependsOn = other.dependsOn.map((id) => (id === expected.id ? step.id : id));
  }

  /** The first step that failed, timed out or was lost. */
  get firstFailed() {
    return this.steps
      .filter((step) => UNSUCCESSFUL.has(step.status))
      .reduce((first, step) => (first && (first.end ?? Infinity) <= (step.end ?? Infinity) ? first : step), null);
  }

  attempt(step, number) {
    let attempt = step.attempts.find((candidate) => candidate.number === number);
    if (!attempt) {
      attempt = { number, status: "running", start: null, end: null, queue: 0, backoff: 0, error: null };
      step.attempts.push(attempt);
    }
    return attempt;
  }

  stepStarted(step, data) {
    if (FINAL.has(step.status)) return;
    const attempt = this.attempt(step, data.attempt);
    attempt.start = this.since(data.started_at);
    attempt.queue = data.queue_seconds * 1000;
    attempt.backoff = data.backoff_seconds * 1000;
    if (data.attempt === 1) step.scheduled = (data.scheduled_seconds ?? 0) * 1000;
    if (attempt.end === null) step.status = "running";
    step.start ??= attempt.start;
  }

  stepRetrying(step, data) {
    const attempt = this.attempt(step, data.attempt);
    attempt.status = data.attempt_status;
    attempt.start = this.since(data.attempt_started_at);
    attempt.end = this.since(data.attempt_completed_at);
    attempt.error = data.error_message;
    step.retryAt = attempt.end + data.delay_seconds * 1000;
    step.start ??= attempt.start;
    if (!FINAL.has(step.status) && step.attempts.at(-1) === attempt) step.status = "retrying";
  }

  stepFinished(step, data) {
    step.status = data.status;
    step.end = this.since(data.completed_at);
    if (data.status === "skipped") return;
    step.start = this.since(data.started_at);
    const attempt = this.attempt(step, data.attempt);
    attempt.status = data.status;
    attempt.start = this.since(data.attempt_started_at);
    attempt.end = step.end;
    attempt.queue = data.queue_seconds * 1000;
    attempt.backoff = data.backoff_seconds * 1000;
    attempt.error = data.error_message;
  }
}

function emptyEntry(id, fields) {
  return {
    step_id: id,
    status: "pending",
    started_at: null,
    completed_at: null,
    attempts: [],
    parent_step_id: null,
    child_execution_id: null,
    on_critical_path: false,
    measures: [],
    logs: [],
    cost: null,
    wait: null,
    ...fields,
  };
}

/** The steps that match the filter, in the order of rows: by start, depth in the graph, definition or duration. */
export function sortSteps(run, { order = "start", text = "", statuses = null } = {}) {
  const query = text.trim().toLowerCase();
  const steps = run.steps.filter(
    (step) => (!query || step.name.toLowerCase().includes(query)) && (!statuses?.size || statuses.has(step.status)),
  );
  const startOf = (step) => step.start ?? step.end ?? Infinity;
  const byStart = (a, b) => startOf(a) - startOf(b) || a.index - b.index;
  if (order === "depth") steps.sort((a, b) => a.depth - b.depth || byStart(a, b));
  else if (order === "defined") steps.sort((a, b) => a.entry.step_order - b.entry.step_order || a.index - b.index);
  else if (order === "length") {
    const length = (step) => (step.start === null ? -1 : (run.barEnd(step, currently()) ?? step.start) - step.start);
    steps.sort((a, b) => length(b) - length(a) || byStart(a, b));
  } else steps.sort(byStart);
  return steps;
}
