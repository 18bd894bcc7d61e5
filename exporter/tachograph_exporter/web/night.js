// A night as the API tells it, arranged for drawing: rows, lanes of runs that overlap, and what connects runs.

import { OPEN_STATUSES, parseTime } from "./format.js";

const MAX_LANES = 8;
/** A window that ended longer ago is over: nothing after it is shown. */
const PAST_MS = 5 * 60_000;
const BAD = new Set(["failed", "timeout", "lost"]);

/** Whether a run ended badly. */
export function isBad(run) {
  return BAD.has(run.status);
}

function runOf(item, row) {
  const start = parseTime(item.started_at);
  return {
    id: item.execution_id,
    row,
    status: item.status,
    start,
    end: parseTime(item.completed_at),
    eta: parseTime(item.expected_end_at),
    lane: 0,
  };
}

/** One workflow of a night. `items` are its runs, and the starts that are missing or may yet come, by time. */
class Row {
  constructor(entry) {
    this.name = entry.workflow;
    this.workflowId = entry.workflow_id;
    this.missing = entry.missing;
    this.runs = entry.runs.map((item) => runOf(item, this)).filter((run) => run.start !== null);
    this.waiting = entry.runs.length - this.runs.length;
    this.starts = entry.expected.map((start) => ({
      row: this,
      state: start.state,
      at: parseTime(start.at),
      startedAt: parseTime(start.started_at),
    }));
    this.arrange();
  }

  /** Put runs that overlap into lanes of their own. */
  arrange() {
    this.runs.sort((a, b) => a.start - b.start);
    const ends = [];
    for (const run of this.runs) {
      let lane = ends.findIndex((end) => end <= run.start);
      if (lane < 0) lane = ends.length < MAX_LANES ? ends.length : MAX_LANES - 1;
      ends[lane] = Math.max(ends[lane] ?? 0, run.end ?? Infinity);
      run.lane = lane;
    }
    this.lanes = Math.max(1, ends.length);
    const marks = this.starts.filter((start) => ["missing", "held", "due"].includes(start.state));
    this.items = [...this.runs, ...marks].sort((a, b) => (a.start ?? a.at) - (b.start ?? b.at));
  }

  get failed() {
    return this.runs.filter(isBad).length;
  }

  get running() {
    return this.waiting + this.runs.filter((run) => OPEN_STATUSES.has(run.status)).length;
  }

  get late() {
    return this.starts.filter((start) => start.state === "late").length;
  }

  get isTroubled() {
    return this.missing > 0 || this.failed > 0 || this.late > 0;
  }

  /** What a row is about, in words: "2 missing, 1 failed". */
  get words() {
    const counts = [
      [this.missing, "missing"],
      [this.failed, "failed"],
      [this.late, "late"],
      [this.running, "running"],
    ];
    return counts
      .filter(([count]) => count)
      .map(([count, word]) => `${count} ${word}`)
      .join(", ");
  }
}

/** All workflows of a window of time. Times are unix milliseconds. */
export class Night {
  constructor(answer) {
    this.from = parseTime(answer.start);
    this.to = parseTime(answer.end);
    this.isComplete = answer.is_complete;
    this.rows = answer.workflows.map((entry) => new Row(entry));
    this.byId = new Map(this.rows.flatMap((row) => row.runs.map((run) => [run.id, run])));
    this.edges = answer.edges
      .map((edge) => ({ ...edge, source: this.byId.get(edge.source), target: this.byId.get(edge.target) }))
      .filter((edge) => edge.source && edge.target);
    this.edgesOf = new Map();
    for (const edge of this.edges)
      for (const run of [edge.source, edge.target]) {
        if (!this.edgesOf.has(run)) this.edgesOf.set(run, []);
        this.edgesOf.get(run).push(edge);
      }
  }

  get runCount() {
    return this.byId.size;
  }

  /** The last moment that is known or expected: later than the window when runs are expected to end after it. */
  last(now) {
    const span = this.to - this.from;
    let last = this.to;
    if (now > this.to + PAST_MS) return last;
    for (const run of this.byId.values())
      if (run.end === null && run.eta !== null && run.eta > last) last = Math.min(run.eta, this.to + span / 4);
    return last;
  }

  /** The night in a sentence: what went wrong first. */
  sentence() {
    const total = (name) => this.rows.reduce((sum, row) => sum + row[name], 0);
    const missing = total("missing");
    const troubled = this.rows.filter((row) => row.isTroubled).length;
    const parts = [
      missing ? `${missing} ${missing === 1 ? "start is" : "starts are"} missing` : "",
      total("failed") ? `${total("failed")} failed` : "",
      total("late") ? `${total("late")} started late` : "",
      total("running") ? `${total("running")} running` : "",
    ].filter(Boolean);
    const workflows = `${this.rows.length} ${this.rows.length === 1 ? "workflow" : "workflows"}`;
    const runs = `${this.runCount.toLocaleString("en")} ${this.runCount === 1 ? "run" : "runs"}`;
    if (!troubled) return `${["Everything ran as expected", ...parts].join(", ")}: ${runs} of ${workflows}.`;
    return `${parts.join(", ")}; ${this.rows.length - troubled} of ${workflows} ran as expected.`;
  }

  /** Apply an event of the stream. Returns whether it is about a run that is not known yet. */
  apply(message) {
    const run = this.byId.get(message.workflow_execution_id);
    if (!run) return true;
    const { data } = message;
    if (data.status) run.status = data.status;
    if (data.completed_at) {
      run.end = parseTime(data.completed_at);
      run.eta = null;
    }
    return false;
  }
}
