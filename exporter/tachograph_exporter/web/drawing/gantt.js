// The rows of a timeline: waits, attempts, retries and the critical path of each step.

import { duration, times } from "../format.js";

export const ROW_HEIGHT = 24;
const BAR_HEIGHT = 14;
const BAR_TOP = (ROW_HEIGHT - BAR_HEIGHT) / 2;
/** Of a backoff, or a countdown. */
const WAITING = { thick: 2, dash: [2, 4] };

/** Draw one step's row, its top at `y`. `x(ms)` is the position of a time. */
export function drawRow(painter, colours, run, step, { x, y, now, left, right, isSelected }) {
  if (isSelected) painter.rect(left, y, right - left, ROW_HEIGHT, colours.accent, { alpha: 0.12 });
  const top = y + BAR_TOP;
  const middle = y + ROW_HEIGHT / 2;
  if (step.status === "skipped") {
    const at = x(step.end ?? 0);
    painter.polygon([at, middle - 5, at + 5, middle, at, middle + 5, at - 5, middle], colours.skipped);
    return;
  }
  const colour = colours[step.status] ?? colours.pending;
  if (step.start === null) {
    if (step.status !== "pending" || !run.isOpen || step.isExpected) return;
    painter.line(x(step.ready), middle, x(run.length(now)), middle, colours.pending, { dash: [1, 4] });
    return;
  }
  // Waiting for dependencies is a thin line; queueing for a slot, below, a thicker bar.
  const first = step.attempts[0]?.start ?? step.start;
  const queued = first - (step.attempts[0]?.queue ?? 0);
  const scheduled = queued - step.scheduled;
  painter.line(x(step.ready), middle, x(scheduled), middle, colours.line, { dash: [2, 3] });
  if (step.scheduled > 0) painter.line(x(scheduled), middle, x(queued), middle, colours.retrying, WAITING);
  const attempts = step.attempts.length
    ? step.attempts
    : [{ start: step.start, end: step.end, status: step.status, queue: 0, backoff: 0 }];
  for (const attempt of attempts) {
    if (attempt.start === null) continue;
    const begin = x(attempt.start);
    const backoffStart = attempt.start - attempt.queue - attempt.backoff;
    if (attempt.backoff > 0)
      painter.line(x(backoffStart), middle, x(attempt.start - attempt.queue), middle, colours.retrying, WAITING);
    if (attempt.queue > 0)
      painter.rect(
        x(attempt.start - attempt.queue),
        middle - 2,
        Math.max(0.5, begin - x(attempt.start - attempt.queue)),
        4,
        colours.wait,
        { alpha: 0.7 },
      );
    const end = attempt.end ?? run.barEnd(step, now) ?? attempt.start;
    const width = Math.max(2, x(end) - begin);
    if (begin > right || begin + width < left) continue;
    const hasFailed = attempt.status === "failed" || attempt.status === "timeout";
    const attemptColour = hasFailed ? colours[attempt.status] : colour;
    const from = Math.max(begin, left - 4);
    const to = Math.min(begin + width, right + 4);
    painter.rect(from, top, to - from, BAR_HEIGHT, attemptColour, {
      alpha: hasFailed && attempt !== attempts.at(-1) ? 0.55 : 0.9,
      radius: 2,
    });
    if (step.status === "lost" && attempt === attempts.at(-1)) hatch(painter, colours, from, top, to - from);
    if (hasFailed && attempt !== attempts.at(-1)) cross(painter, colours, begin + width, middle);
    if (attempt.end === null && run.isOpen)
      painter.rect(to - 2, top - 2, 2, BAR_HEIGHT + 4, colours.text, { alpha: 0.8 });
  }
  const end = x(run.barEnd(step, now) ?? step.start);
  if (step.isCritical)
    painter.rect(
      Math.max(left, x(first)),
      top + BAR_HEIGHT,
      Math.max(2, Math.min(right, end) - Math.max(left, x(first))),
      3,
      colours.critical,
    );
  const usual = run.usual.get(step.id);
  if (usual) drawUsual(painter, colours, x(queued + usual.seconds * 1000), top, { left, right });
  drawLabel(painter, colours, labelParts(run, step, usual, now), {
    before: Math.min(x(queued), right),
    after: Math.max(end, left, usual ? Math.min(x(queued + usual.seconds * 1000), right) : left),
    middle,
    left,
    right,
  });
}

/** A tick where the step usually ends. */
function drawUsual(painter, colours, x, top, { left, right }) {
  if (x < left || x > right) return;
  painter.rect(x - 2, top - 3, 4, BAR_HEIGHT + 6, colours.paper);
  painter.rect(x - 1, top - 3, 2, BAR_HEIGHT + 6, colours.text);
}

/** The label's parts, each with its colour: the duration, attempts, and how much longer than usual. */
function labelParts(run, step, usual, now) {
  const parts = [[duration(((run.barEnd(step, now) ?? step.start) - step.start) / 1000), "quiet"]];
  if (usual?.isSlow) parts.push([` ${times(usual.ratio)}`, "failed"]);
  if (step.attempts.length > 1) parts.push([` · ${step.attempts.length} attempts`, "quiet"]);
  const wait = step.retryAt && step.status === "retrying" ? step.retryAt - (now - run.origin) : 0;
  if (wait > 0) parts.push([` · next attempt in ${duration(Math.ceil(wait / 1000))}`, "retrying"]);
  return parts;
}

/** Draw a label behind the bar, or in front of it if there is no room; nothing is drawn through it. */
function drawLabel(painter, colours, parts, { before, after, middle, left, right }) {
  const size = 11;
  const widths = parts.map(([text]) => painter.measure(text, { size, bold: false }));
  const width = widths.reduce((sum, part) => sum + part, 0);
  let at;
  if (after + 6 + width < right) at = after + 6;
  else if (before - 6 - width > left) at = before - 6 - width;
  else return;
  painter.rect(at - 2, middle - 8, width + 4, 16, colours.paper, { alpha: 0.9 });
  parts.forEach(([text, colour], index) => {
    painter.text(at, middle, text, colours[colour], { size });
    at += widths[index];
  });
}

function hatch(painter, colours, x, y, width) {
  const end = Math.min(width, 4000);
  for (let at = 0; at < end; at += 6)
    painter.line(x + at, y + BAR_HEIGHT, x + Math.min(end, at + 6), y, colours.paper, { thick: 1.5 });
}

function cross(painter, colours, x, y) {
  painter.line(x - 4, y - 4, x + 4, y + 4, colours.failed, { thick: 2 });
  painter.line(x - 4, y + 4, x + 4, y - 4, colours.failed, { thick: 2 });
}

/** Draw a step's dependencies and dependents as arrows. `rowTop(step)` is the top of a row, or null if it is hidden. */
export function drawDependencies(painter, colours, run, step, { x, rowTop, now }) {
  const draw = (from, to, colour) => {
    const [y1, y2] = [rowTop(from), rowTop(to)];
    if (y1 === null || y2 === null || (from.end === null && from.start === null)) return;
    const x1 = x(run.barEnd(from, now) ?? from.end ?? 0);
    const x2 = x(to.start ?? to.end ?? run.length(now));
    const bend = Math.max(18, Math.abs(x2 - x1) / 3);
    painter.curve(
      [
        x1,
        y1 + ROW_HEIGHT / 2,
        x1 + bend,
        y1 + ROW_HEIGHT / 2,
        x2 - bend,
        y2 + ROW_HEIGHT / 2,
        x2,
        y2 + ROW_HEIGHT / 2,
      ],
      colour,
      {
        thick: 1.5,
        alpha: 0.9,
      },
    );
    painter.polygon(
      [x2, y2 + ROW_HEIGHT / 2, x2 - 6, y2 + ROW_HEIGHT / 2 - 4, x2 - 6, y2 + ROW_HEIGHT / 2 + 4],
      colour,
    );
  };
  for (const id of step.dependsOn) {
    const other = run.byId.get(id);
    if (other) draw(other, step, other.isCritical && step.isCritical ? colours.critical : colours.accent);
  }
  for (const other of step.dependents.slice(0, 500)) draw(step, other, colours.quiet);
}
