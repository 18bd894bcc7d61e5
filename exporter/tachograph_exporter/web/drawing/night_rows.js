// The rows of a night: runs as bars, and marks for starts that were expected.

import { isBad } from "../night.js";
import { shortClock } from "../times.js";

const BAR = 14;
const PITCH = 18;
const PAD = 7;
/** Marks closer than this many pixels are drawn as one. */
const CLOSE = 18;

/** Heights of a row's parts; `head`: room for its name above, on small screens. */
export function rowHeight(row, head) {
  return head + PAD + row.lanes * PITCH + 3;
}

/** Where a run's bar is: `{x1, x2, y}`; y is its middle. */
export function barOf(run, { x, now, top, head }) {
  const x1 = x(run.start);
  return { x1, x2: Math.max(x1 + 3, x(run.end ?? now)), y: top + head + PAD + run.lane * PITCH + BAR / 2 };
}

/** Draw a row with its top at `top`. */
export function drawNightRow(painter, colours, row, place) {
  const { left, right, x } = place;
  for (const run of row.runs) {
    if (x(run.start) > right || x(run.eta ?? run.end ?? place.now) < left - 30) continue;
    drawRun(painter, colours, run, place);
  }
  drawStarts(painter, colours, row, place);
}

function drawRun(painter, colours, run, place) {
  const { left, right } = place;
  const { isSelected, isDimmed } = place.look(run);
  const { x1, x2, y } = barOf(run, place);
  const colour = colours[run.status] ?? colours.pending;
  const from = Math.max(x1, left - 6);
  const to = Math.min(x2, right + 6);
  const top = y - BAR / 2;
  const alpha = isDimmed ? 0.35 : 0.9;
  const width = Math.max(3, to - from);
  if (run.status === "cancelled") {
    painter.rect(from, top, width, BAR, colour, { alpha: 0.25 });
    painter.frame(from + 0.75, top + 0.75, Math.max(1.5, width - 1.5), BAR - 1.5, colour, 1.5);
  } else painter.rect(from, top, width, BAR, colour, { alpha, radius: width < 12 ? 0 : 2 });
  if (run.status === "lost") hatch(painter, from, top, width, colours.paper);
  if (run.end === null) drawTail(painter, colours, run, place, { from: to, top, colour });
  if (isBad(run)) drawOutcome(painter, colours, run.status, { x1: from, x2: from + width, y });
  if (isSelected) painter.frame(from - 2.5, top - 2.5, width + 5, BAR + 5, colours.text, 2);
}

/** What is expected of a run that is running: hatched, up to its end. */
function drawTail(painter, colours, run, { x, now, right }, { from, top, colour }) {
  if (run.eta !== null && run.eta > now) {
    const end = Math.min(x(run.eta), right + 6);
    if (end - from > 2) {
      painter.rect(from, top, end - from, BAR, colour, { alpha: 0.14 });
      hatch(painter, from, top, end - from, colour);
      painter.line(end, top, end, top + BAR, colour, { thick: 2 });
    }
  } else if (from < right)
    painter.line(from + 2, top + BAR / 2, Math.min(from + 16, right), top + BAR / 2, colour, {
      thick: 2,
      dash: [2, 3],
    });
  painter.rect(from - 2, top - 3, 2, BAR + 6, colours.text);
}

function hatch(painter, x, y, width, colour) {
  painter.within(x, y, width, BAR, () => {
    const end = Math.min(width, 4000);
    for (let at = -BAR; at < end; at += 6) painter.line(x + at, y + BAR, x + at + BAR, y, colour, { thick: 1.5 });
  });
}

/** The shape of a bad end, beside its colour: a cross, a clock's hands, a question mark. */
function drawOutcome(painter, colours, status, { x1, x2, y }) {
  const fits = x2 - x1 >= 13;
  const x = fits ? x2 - 7 : (x1 + x2) / 2;
  const middle = fits ? y : y - BAR / 2 - 3;
  const colour = fits ? colours.paper : colours[status];
  if (!fits) painter.rect(x - 4.5, middle - 4.5, 9, 9, colours.paper);
  if (status === "lost") {
    painter.text(x, middle, "?", colour, { size: 11, bold: true, align: "center" });
  } else if (status === "timeout") {
    painter.line(x, middle - 4, x, middle, colour, { thick: 2 });
    painter.line(x, middle, x + 4, middle, colour, { thick: 2 });
  } else {
    painter.line(x - 3.5, middle - 3.5, x + 3.5, middle + 3.5, colour, { thick: 2 });
    painter.line(x - 3.5, middle + 3.5, x + 3.5, middle - 3.5, colour, { thick: 2 });
  }
}

function drawStarts(painter, colours, row, place) {
  const { x, left, right, top, head } = place;
  const y = top + head + PAD;
  const bottom = y + row.lanes * PITCH - 2;
  const visible = row.starts.filter((start) => x(start.at) >= left - 20 && x(start.at) <= right + 20);
  for (const start of visible) {
    const at = x(start.at);
    if (start.state === "started") painter.line(at, bottom, at, bottom + 4, colours.quiet);
    else if (start.state === "due") {
      painter.polygon([at - 5, y + 1, at + 5, y + 1, at, y + 9], colours.quiet);
      painter.polygon([at - 2.5, y + 2.5, at + 2.5, y + 2.5, at, y + 6.5], colours.paper);
    } else if (start.state === "late") {
      painter.line(at, y - 2, at, bottom + 4, colours.timeout, { thick: 2 });
      painter.line(at, y + BAR / 2, Math.min(x(start.startedAt), right), y + BAR / 2, colours.timeout, {
        thick: 2,
        dash: [2, 3],
      });
    } else if (start.state === "held") {
      painter.frame(at - 4, y + 3, 8, 8, colours.quiet, 1.5);
      painter.line(at - 2, y + 7, at + 2, y + 7, colours.quiet, { thick: 1.5 });
    }
  }
  const missing = visible.filter((start) => start.state === "missing");
  for (const group of grouped(missing, x)) drawMissing(painter, colours, row, group, place);
}

/** Marks that are close to each other, in groups. */
function grouped(starts, x) {
  const groups = [];
  for (const start of starts) {
    const group = groups.at(-1);
    if (group && x(start.at) - x(group.at(-1).at) < CLOSE) group.push(start);
    else groups.push([start]);
  }
  return groups;
}

/** A start that did not come: an empty place with a cross, and words where there is room. */
function drawMissing(painter, colours, row, group, place) {
  const { x, left, right, top, head, look } = place;
  const y = top + head + PAD;
  // What was due before the window has been missing since.
  const x1 = Math.max(x(group[0].at) - 7, left);
  const x2 = Math.max(x(group.at(-1).at) + 7, x1 + 14);
  painter.rect(x1, y, x2 - x1, BAR, colours.failed, { alpha: 0.12 });
  for (const [fromX, fromY, toX, toY] of [
    [x1, y, x2, y],
    [x1, y + BAR, x2, y + BAR],
    [x1, y, x1, y + BAR],
    [x2, y, x2, y + BAR],
  ])
    painter.line(fromX, fromY, toX, toY, colours.failed, { thick: 1.5, dash: [3, 2] });
  const middle = (x1 + x2) / 2;
  const centre = y + BAR / 2;
  painter.line(middle - 3.5, centre - 3.5, middle + 3.5, centre + 3.5, colours.failed, { thick: 2 });
  painter.line(middle - 3.5, centre + 3.5, middle + 3.5, centre - 3.5, colours.failed, { thick: 2 });
  if (group.some((start) => look(start).isSelected))
    painter.frame(x1 - 2.5, y - 2.5, x2 - x1 + 5, BAR + 5, colours.text, 2);
  const clock = shortClock(new Date(group[0].at));
  const text = group.length > 1 ? `${group.length} did not start, from ${clock}` : `did not start, ${clock}`;
  const width = painter.measure(text, { size: 11, bold: true });
  const next = row.items.find((item) => (item.start ?? item.at) > group.at(-1).at);
  const room = Math.min(right, next ? x(next.start ?? next.at) - 8 : right);
  if (x2 + 6 + width < room) painter.text(x2 + 6, centre, text, colours.failed, { size: 11, bold: true });
  else if (x1 - 6 - width > left && !row.items.some((item) => overlaps(item, x, x1 - 10 - width, x1 - 2, place.now)))
    painter.text(x1 - 6 - width, centre, text, colours.failed, { size: 11, bold: true });
}

function overlaps(item, x, from, to, now) {
  if (item.start === undefined) return x(item.at) + 8 > from && x(item.at) - 8 < to;
  return x(item.eta ?? item.end ?? now) > from && x(item.start) < to;
}

/** Draw an arrow between two runs: where one began in the other, or read what it had written. */
export function drawEdge(painter, colours, edge, { source, target, x }, { isFaint }) {
  const isDataset = edge.kind === "dataset";
  const x1 = isDataset ? source.x2 : Math.min(Math.max(source.x1, x(edge.target.start)), source.x2);
  const x2 = target.x1;
  const colour = isDataset ? colours.critical : edge.kind === "trigger" ? colours.retrying : colours.accent;
  const isDown = target.y > source.y;
  const y1 = source.y + (isDown ? 6 : -6);
  const y2 = target.y + (Math.abs(x2 - x1) < 12 ? (isDown ? -9 : 9) : 0);
  const bend = Math.max(16, Math.min(90, Math.abs(x2 - x1) / 2));
  painter.curve([x1, y1, x1 + (isDataset ? bend : 0), isDataset ? y1 : y2, x2 - bend, y2, x2 - 2, y2], colour, {
    thick: isFaint ? 1 : 2,
    alpha: isFaint ? 0.45 : 0.95,
  });
  painter.polygon([x2, y2, x2 - 7, y2 - 4, x2 - 7, y2 + 4], colour);
}
