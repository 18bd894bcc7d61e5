// The time axis of a timeline.

import { duration } from "../format.js";

/** About `count` round times (ms) between `from` and `to`. */
export function ticks(from, to, count) {
  const span = to - from;
  if (!(span > 0)) return [];
  const rough = span / Math.max(1, count);
  const ladder =
    rough < 1000
      ? [1, 2, 5]
          .map((digit) => digit * 10 ** Math.floor(Math.log10(rough)))
          .concat(10 ** (Math.floor(Math.log10(rough)) + 1))
      : [
          1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800,
          2592000,
        ].map((digit) => digit * 1000);
  const step = ladder.find((length) => length >= rough) ?? ladder.at(-1);
  const times = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) times.push(Math.round(at * 1e6) / 1e6);
  return times;
}

/** Draw the axis' grid lines and, at height `labels`, their times. `x(ms)` is the position of a time. */
export function drawAxis(painter, colours, { x, from, to, left, width, height, top, labels }) {
  for (const at of ticks(from, to, width / 110)) {
    const position = x(at);
    if (position < left || position > left + width) continue;
    painter.line(position, top, position, height, colours.line);
    if (labels !== undefined)
      painter.text(position + 3, labels, at === 0 ? "0" : duration(at / 1000), colours.quiet, { size: 11 });
  }
}
