// A small distribution: how long runs of a workflow usually take, and where this one stands.

import { s } from "./dom.js";
import { duration } from "./format.js";

const WIDTH = 96;
const HEIGHT = 20;
const ENOUGH = 20;

/** `metrics` of the workflow; `seconds` this run took (or has taken, if it `isOpen`). */
export function distribution(metrics, seconds, isOpen) {
  const bars = metrics.distribution.filter((bar) => bar.high > 0);
  if (!bars.length) return null;
  const floor = Math.max(1e-9, bars[0].low || bars[0].high / 2);
  const [low, high] = [Math.log(Math.min(floor, seconds || floor)), Math.log(Math.max(bars.at(-1).high, seconds || 0))];
  const x = (value) => ((Math.log(Math.max(value, Math.exp(low))) - low) / Math.max(1e-9, high - low)) * WIDTH;
  const most = Math.max(...bars.map((bar) => bar.count));
  const { p50, p95 } = metrics.by_status.completed ?? metrics;
  const said = `usually ${duration(p50)}, ${duration(p95)} at the 95th percentile`;
  // Of few runs nobody can say what is unusual.
  const isSlow = p95 !== null && seconds > p95 && bars.reduce((sum, bar) => sum + bar.count, 0) >= ENOUGH;
  return s(
    "svg",
    {
      class: "spread",
      width: WIDTH,
      height: HEIGHT,
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label": `${duration(seconds)}${isOpen ? " so far" : ""}; ${said}`,
    },
    s("title", {}, said),
    bars.map((bar) => {
      const tall = Math.max(1.5, (bar.count / most) * (HEIGHT - 4));
      return s("rect", {
        class: "bar",
        x: x(bar.low),
        y: HEIGHT - tall,
        width: Math.max(2.5, x(bar.high) - x(bar.low) - 0.5),
        height: tall,
      });
    }),
    seconds > 0
      ? s("rect", {
          class: isSlow ? "here slow" : "here",
          x: Math.min(WIDTH - 2, Math.max(0, x(seconds) - 1)),
          y: 0,
          width: 2,
          height: HEIGHT,
        })
      : null,
  );
}
