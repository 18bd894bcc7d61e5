// The axis of a chart whose times are times of day.

import { midnights, shortClock, shortDay } from "../times.js";

const MINUTE = 60_000;
const DAY = 24 * 60 * MINUTE;
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440].map((minutes) => minutes * MINUTE);

/** About `count` round times of day between two (unix ms), each with its label. */
export function clockTicks(from, to, count) {
  const step = STEPS.find((length) => (to - from) / length <= count) ?? DAY;
  const ticks = [];
  for (const [midnight, next] of midnights(from, to)) {
    for (let at = midnight; at < next - step / 2 || at === midnight; at += step) {
      const date = new Date(at);
      if (at >= from && at <= to)
        ticks.push({ at, isDay: at === midnight, text: at === midnight ? shortDay(date) : shortClock(date) });
    }
  }
  return ticks;
}

/** Draw the grid lines, and at height `labels` the times. `x(ms)` is the position of a time. */
export function drawClockAxis(painter, colours, { x, from, to, left, right, height, labels }) {
  let free = left;
  for (const { at, isDay, text } of clockTicks(from, to, (right - left) / 76)) {
    const position = x(at);
    painter.line(position, labels === undefined ? 0 : 16, position, height, colours.line, { thick: isDay ? 2 : 1 });
    if (labels === undefined || position < free) continue;
    const width = painter.measure(text, { size: 11, bold: isDay });
    if (position + 4 + width > right) continue;
    painter.text(position + 4, labels, text, isDay ? colours.text : colours.quiet, { size: 11, bold: isDay });
    free = position + width + 12;
  }
}
