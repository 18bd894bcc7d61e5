// How a run's rows are drawn: wait and work told apart, attempts, retries, the critical path. Pure strokes, no state.

import { duration } from "./format.js";
import { fit } from "./painter.js";

export const ROW = 24;
const BAR = 14;
const TOP = (ROW - BAR) / 2;

/** Moments at which lines of the axis stand: round numbers of ms, about `wanted` of them. */
export function ticks(from, to, wanted) {
  const span = to - from;
  if (!(span > 0)) return [];
  const rough = span / Math.max(1, wanted);
  const ladder =
    rough < 1000
      ? [1, 2, 5]
          .map((one) => one * 10 ** Math.floor(Math.log10(rough)))
          .concat(10 ** (Math.floor(Math.log10(rough)) + 1))
      : [
          1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800,
          2592000,
        ].map((one) => one * 1000);
  const step = ladder.find((one) => one >= rough) ?? ladder.at(-1);
  const found = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) found.push(Math.round(at * 1e6) / 1e6);
  return found;
}

/** The axis and the lines down from it. `x(ms)` says where a moment is. */
export function axis(painter, colours, { x, from, to, left, width, height, top, labels }) {
  for (const at of ticks(from, to, width / 110)) {
    const place = x(at);
    if (place < left || place > left + width) continue;
    painter.line(place, top, place, height, colours.line);
    if (labels !== undefined)
      painter.text(place + 3, labels, at === 0 ? "0" : duration(at / 1000), colours.quiet, { size: 11 });
  }
}

/** One step's row at height `y`. */
export function row(painter, colours, run, step, { x, y, now, left, right, isSelected }) {
  if (isSelected) painter.rect(left, y, right - left, ROW, colours.accent, { alpha: 0.12 });
  const top = y + TOP;
  const middle = y + ROW / 2;
  if (step.status === "skipped") {
    const at = x(step.end ?? 0);
    painter.polygon([at, middle - 5, at + 5, middle, at, middle + 5, at - 5, middle], colours.skipped);
    return;
  }
  const colour = colours[step.status] ?? colours.pending;
  if (step.start === null) {
    if (step.status !== "pending" || !run.isOpen) return;
    painter.line(x(step.ready), middle, x(run.length(now)), middle, colours.pending, { dash: [1, 4] });
    return;
  }
  // Waited for what it depends on, drawn thin; for a slot, thicker.
  const first = step.attempts[0]?.start ?? step.start;
  const queued = first - (step.attempts[0]?.queue ?? 0);
  painter.line(x(step.ready), middle, x(queued), middle, colours.line, { dash: [2, 3] });
  const attempts = step.attempts.length
    ? step.attempts
    : [{ start: step.start, end: step.end, status: step.status, queue: 0, backoff: 0 }];
  for (const attempt of attempts) {
    if (attempt.start === null) continue;
    const begun = x(attempt.start);
    const pause = attempt.start - attempt.queue - attempt.backoff;
    if (attempt.backoff > 0)
      painter.line(x(pause), middle, x(attempt.start - attempt.queue), middle, colours.retrying, {
        thick: 2,
        dash: [2, 4],
      });
    if (attempt.queue > 0)
      painter.rect(
        x(attempt.start - attempt.queue),
        middle - 2,
        Math.max(0.5, begun - x(attempt.start - attempt.queue)),
        4,
        colours.wait,
        { alpha: 0.7 },
      );
    const end = attempt.end ?? run.reach(step, now) ?? attempt.start;
    const width = Math.max(2, x(end) - begun);
    if (begun > right || begun + width < left) continue;
    const hasFailed = attempt.status === "failed" || attempt.status === "timeout";
    const own = hasFailed ? colours[attempt.status] : colour;
    const from = Math.max(begun, left - 4);
    const to = Math.min(begun + width, right + 4);
    painter.rect(from, top, to - from, BAR, own, {
      alpha: hasFailed && attempt !== attempts.at(-1) ? 0.55 : 0.9,
      radius: 2,
    });
    if (step.status === "lost" && attempt === attempts.at(-1)) hatch(painter, colours, from, top, to - from);
    if (hasFailed && attempt !== attempts.at(-1)) cross(painter, colours, begun + width, middle);
    if (attempt.end === null && run.isOpen) painter.rect(to - 2, top - 2, 2, BAR + 4, colours.text, { alpha: 0.8 });
  }
  const end = x(run.reach(step, now) ?? step.start);
  if (step.isCritical)
    painter.rect(
      Math.max(left, x(first)),
      top + BAR,
      Math.max(2, Math.min(right, end) - Math.max(left, x(first))),
      3,
      colours.critical,
    );
  const length = duration(((run.reach(step, now) ?? step.start) - step.start) / 1000);
  const label = step.attempts.length > 1 ? `${length} · ${step.attempts.length} attempts` : length;
  const width = painter.measure(label, { size: 11 });
  if (end + 6 + width < right) painter.text(Math.max(end, left) + 6, middle, label, colours.quiet, { size: 11 });
  else if (x(first) - 6 - width > left)
    painter.text(Math.min(x(first), right) - 6, middle, label, colours.quiet, { size: 11, align: "right" });
}

function hatch(painter, colours, x, y, width) {
  const end = Math.min(width, 4000);
  for (let at = 0; at < end; at += 6)
    painter.line(x + at, y + BAR, x + Math.min(end, at + 6), y, colours.paper, { thick: 1.5 });
}

function cross(painter, colours, x, y) {
  painter.line(x - 4, y - 4, x + 4, y + 4, colours.failed, { thick: 2 });
  painter.line(x - 4, y + 4, x + 4, y - 4, colours.failed, { thick: 2 });
}

/** What a step waited for, and who waits for it, as curves from end to start. `place(step)` is its row's height. */
export function dependencies(painter, colours, run, step, { x, place, now }) {
  const draw = (from, to, colour) => {
    const [y1, y2] = [place(from), place(to)];
    if (y1 === null || y2 === null || (from.end === null && from.start === null)) return;
    const x1 = x(run.reach(from, now) ?? from.end ?? 0);
    const x2 = x(to.start ?? to.end ?? run.length(now));
    const bend = Math.max(18, Math.abs(x2 - x1) / 3);
    painter.curve([x1, y1 + ROW / 2, x1 + bend, y1 + ROW / 2, x2 - bend, y2 + ROW / 2, x2, y2 + ROW / 2], colour, {
      thick: 1.5,
      alpha: 0.9,
    });
    painter.polygon([x2, y2 + ROW / 2, x2 - 6, y2 + ROW / 2 - 4, x2 - 6, y2 + ROW / 2 + 4], colour);
  };
  for (const id of step.dependsOn) {
    const other = run.byId.get(id);
    if (other) draw(other, step, other.isCritical && step.isCritical ? colours.critical : colours.accent);
  }
  for (const other of step.dependents.slice(0, 500)) draw(step, other, colours.quiet);
}

/** The whole run, small: how many steps ran at each moment, failures, and the part that is looked at. */
export function minimap(painter, colours, run, { width, height, view, now }) {
  const total = Math.max(1, run.length(now));
  const columns = Math.max(1, Math.floor(width / 2));
  const running = new Int32Array(columns + 1);
  const bad = new Uint8Array(columns);
  const critical = new Uint8Array(columns);
  const column = (at) => Math.min(columns - 1, Math.max(0, Math.floor((at / total) * columns)));
  for (const step of run.steps) {
    if (step.start === null) continue;
    const [first, last] = [column(step.start), column(run.reach(step, now) ?? step.start)];
    running[first] += 1;
    running[last + 1] -= 1;
    if (step.status === "failed" || step.status === "timeout" || step.status === "lost") bad[last] = 1;
    if (step.isCritical) for (let i = first; i <= last; i += 1) critical[i] = 1;
  }
  let most = 1;
  for (let i = 0, count = 0; i < columns; i += 1) most = Math.max(most, (count += running[i]));
  const each = width / columns;
  const room = height - 8;
  let [count, begun, marked] = [0, 0, 0];
  for (let i = 0; i <= columns; i += 1) {
    // Columns that are alike are one rectangle: no seams, and fewer strokes.
    if (i === columns || running[i]) {
      const tall = (count / most) * room;
      if (count && i > begun)
        painter.rect(begun * each, room - tall + 2, (i - begun) * each, tall, colours.running, { alpha: 0.55 });
      count += running[i];
      begun = i;
    }
    if (i === columns || Boolean(critical[i]) !== Boolean(critical[i - 1])) {
      if (i > 0 && critical[i - 1]) painter.rect(marked * each, height - 5, (i - marked) * each, 3, colours.critical);
      marked = i;
    }
  }
  for (let i = 0; i < columns; i += 1)
    if (bad[i]) painter.rect(i * each, 0, Math.max(2, each), height - 6, colours.failed);
  const [x1, x2] = [(view.from / total) * width, (view.to / total) * width];
  painter.rect(0, 0, Math.max(0, x1), height, colours.paper, { alpha: 0.65 });
  painter.rect(x2, 0, Math.max(0, width - x2), height, colours.paper, { alpha: 0.65 });
  painter.frame(Math.max(0.5, x1), 0.5, Math.min(width, x2) - Math.max(0, x1) - 1, height - 1, colours.accent);
}

/** The whole run as one picture, names and all. */
export function picture(painter, colours, run, steps, { width, now, title }) {
  const names = Math.min(360, 24 + Math.max(80, ...steps.map((step) => painter.measure(step.name))));
  const height = 64 + steps.length * ROW + 12;
  painter.begin(width, height, 2);
  painter.rect(0, 0, width, height, colours.paper);
  painter.text(12, 20, title, colours.text, { bold: true, size: 14 });
  const total = Math.max(1, run.length(now));
  const right = width - 12;
  const x = (at) => names + (at / total) * (right - names - 90);
  axis(painter, colours, {
    x,
    from: 0,
    to: total,
    left: names,
    width: right - names,
    height: height - 8,
    top: 58,
    labels: 48,
  });
  steps.forEach((step, index) => {
    const y = 64 + index * ROW;
    const mark = step.isCritical ? "◆ " : "";
    painter.text(
      12,
      y + ROW / 2,
      fit(painter, mark + step.name, names - 24),
      step.isCritical ? colours.critical : colours.text,
    );
    row(painter, colours, run, step, { x, y, now, left: names, right, isSelected: false });
  });
  return { width, height };
}
