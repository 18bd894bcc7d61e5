// In place of `api.js`: the service's answers are in the file.

import { read } from "./contents.js";

/** An answer that is not in the file. */
export class Problem extends Error {
  constructor(detail) {
    super(detail);
    this.status = 404;
    this.code = "not_in_report";
    this.errors = [];
  }
}

export const session = { workspace: "", token: "" };

/** The answer to a request, as `api.js` has it. Throws `Problem` if it is not in the file. */
export async function get(path, values = {}) {
  const contents = read();
  const [name] = path.split("/").slice(-1);
  const answers = {
    timeline: () => (values.format ? undefined : contents.timeline),
    status: () => contents.timeline,
    compare: () => contents.comparison,
    why: () => contents.why,
    metrics: () => contents.metrics,
    logs: () => ({ items: contents.lines.filter((line) => isAskedFor(line, values)), next: null }),
    [encodeURIComponent(contents.timeline.workflow_id)]: () => contents.definition,
  };
  const answer = Object.hasOwn(answers, name) ? answers[name]() : null;
  if (answer === null || answer === undefined) throw new Problem("This is not in the report.");
  return answer;
}

/** A file changes nothing. */
export function post() {
  return Promise.reject(new Problem("A report cannot change a run."));
}

/** The lowest severity number of each level; see the route's `level`. */
const SEVERITIES = { trace: 1, debug: 5, info: 9, warn: 13, error: 17, fatal: 21 };

function isAskedFor(line, { step, level, text }) {
  if (step && line.step_id !== step) return false;
  if (level && line.severity < SEVERITIES[level]) return false;
  return !text || `${line.message} ${line.error_message ?? ""}`.toLowerCase().includes(text.toLowerCase());
}
