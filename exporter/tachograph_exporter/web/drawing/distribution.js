// A small histogram of a workflow's usual durations, with one run marked.

import { svg } from "../dom.js";
import { duration } from "../format.js";

const WIDTH = 96;
const HEIGHT = 20;
const MIN_RUNS = 20;

/** `metrics` are the workflow's; `seconds` is the run's duration, so far if it `isOpen`. Null without data. */
export function distribution(metrics, seconds, isOpen) {
  const bars = metrics.distribution.filter((bar) => bar.high > 0);
  if (!bars.length) return null;
  const floor = Math.max(1e-9, bars[0].low || bars[0].high / 2);
  const [low, high] = [Math.log(Math.min(floor, seconds || floor)), Math.log(Math.max(bars.at(-1).high, seconds || 0))];
  const x = (value) => ((Math.log(Math.max(value, Math.exp(low))) - low) / Math.max(1e-9, high - low)) * WIDTH;
  const maxCount = Math.max(...bars.map((bar) => bar.count));
  const { p50, p95 } = metrics.by_status?.completed ?? metrics;
  const summary = `usually ${duration(p50)}, ${duration(p95)} at the 95th percentile`;
  // Too few runs to call anything unusual.
  const isSlow = p95 !== null && seconds > p95 && bars.reduce((sum, bar) => sum + bar.count, 0) >= MIN_RUNS;
  return svg(
    "svg",
    {
      class: "distribution",
      width: WIDTH,
      height: HEIGHT,
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label": `${duration(seconds)}${isOpen ? " so far" : ""}; ${summary}`,
    },
    svg("title", {}, summary),
    bars.map((bar) => {
      const barHeight = Math.max(1.5, (bar.count / maxCount) * (HEIGHT - 4));
      return svg("rect", {
        class: "bar",
        x: x(bar.low),
        y: HEIGHT - barHeight,
        width: Math.max(2.5, x(bar.high) - x(bar.low) - 0.5),
        height: barHeight,
      });
    }),
    seconds > 0
      ? svg("rect", {
          class: isSlow ? "here slow" : "here",
          x: Math.min(WIDTH - 2, Math.max(0, x(seconds) - 1)),
          y: 0,
          width: 2,
          height: HEIGHT,
        })
      : null,
  );
}
