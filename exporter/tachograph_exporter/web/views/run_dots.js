// The runs of a workflow over time, a dot each: how long it took, and red if it failed. A click opens the run.

import { h, replace, svg } from "../dom.js";
import { ticks } from "../drawing/axis.js";
import { duration, OPEN_STATUSES, parseTime, STATUS_SYMBOLS } from "../format.js";
import { clock, time } from "../times.js";

const HEIGHT = 190;
const LEFT = 62;
const BOTTOM = 20;
const RADIUS = 4;
/** From this ratio of the longest to the shortest run on, the axis is logarithmic. */
const LOGARITHMIC = 40;

export class RunDots {
  /** `page` is a list of the newest runs, `start` and `end` the range of time to show. */
  constructor(page, { start, end }) {
    this.runs = page.items.filter((run) => run.started_at);
    this.from = parseTime(start);
    this.to = Math.max(parseTime(end), Date.now());
    this.box = h("div", { class: "dots" });
    const note = page.next ? ` (the newest ${page.items.length} of ${page.total.toLocaleString("en")})` : "";
    this.element = h(
      "figure",
      { class: "chart wide" },
      h("figcaption", {}, "Every run", h("span", { class: "quiet" }, `${note} · click one to open it`)),
      this.box,
    );
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.box);
    this.element.hidden = !this.runs.length;
  }

  secondsOf(run) {
    return OPEN_STATUSES.has(run.status)
      ? Math.max(0, Date.now() - parseTime(run.started_at)) / 1000
      : (run.duration_seconds ?? 0);
  }

  draw() {
    const width = this.box.clientWidth;
    if (!width || !this.element.isConnected || width === this.width) return;
    this.width = width;
    const lengths = this.runs.map((run) => Math.max(1e-6, this.secondsOf(run)));
    const [low, high] = [Math.min(...lengths), Math.max(...lengths)];
    const isLog = high / low > LOGARITHMIC;
    const scale = isLog ? Math.log : (value) => value;
    const [bottom, top] = [isLog ? scale(low / 1.3) : 0, scale(high * (isLog ? 1.3 : 1.08))];
    const plot = HEIGHT - BOTTOM - 6;
    const y = (seconds) => 6 + plot * (1 - (scale(seconds) - bottom) / Math.max(1e-9, top - bottom));
    const x = (at) => LEFT + ((at - this.from) / (this.to - this.from)) * (width - LEFT - 10);
    const rows = isLog ? logTicks(low, high) : ticks(0, high * 1000, 4).map((at) => at / 1000);
    const days = ticks(this.from, this.to, width / 130);
    const elements = [
      rows.map((seconds) => [
        svg("line", { class: "grid", x1: LEFT, x2: width, y1: y(seconds), y2: y(seconds) }),
        svg(
          "text",
          { class: "label", x: LEFT - 6, y: y(seconds) + 4, "text-anchor": "end" },
          seconds ? duration(seconds) : "0",
        ),
      ]),
      days
        .filter((at) => x(at) < width - 20)
        .map((at) => [
          svg("line", { class: "grid", x1: x(at), x2: x(at), y1: 6, y2: HEIGHT - BOTTOM }),
          svg("text", { class: "label", x: x(at), y: HEIGHT - 5, "text-anchor": "middle" }, this.dayLabel(at)),
        ]),
      // Failed runs on top.
      this.runs
        .map((run, index) => ({ run, seconds: lengths[index] }))
        .sort((a, b) => Number(a.run.status !== "completed") - Number(b.run.status !== "completed"))
        .map(({ run, seconds }) => this.dot(run, seconds, x(parseTime(run.started_at)), y(seconds))),
    ];
    const failed = this.runs.filter((run) => ["failed", "timeout", "lost"].includes(run.status)).length;
    replace(
      this.box,
      svg(
        "svg",
        {
          width,
          height: HEIGHT,
          viewBox: `0 0 ${width} ${HEIGHT}`,
          role: "img",
          "aria-label": `${this.runs.length} runs, ${failed} failed; the last ones are listed below`,
        },
        elements,
      ),
    );
  }

  dayLabel(at) {
    const isLong = this.to - this.from > 3 * 86_400_000;
    return isLong ? time(new Date(at).toISOString()).textContent.split(",")[0] : clock(new Date(at)).slice(0, 5);
  }

  dot(run, seconds, x, y) {
    const at = clock(new Date(run.started_at));
    const label = `${STATUS_SYMBOLS[run.status] ?? ""} ${run.status}, ${duration(seconds)}, ${at}`;
    return svg(
      "circle",
      {
        class: `dot ${run.status}`,
        cx: x.toFixed(1),
        cy: y.toFixed(1),
        r: RADIUS,
        on: { click: () => (location.hash = `#/executions/${run.execution_id}`) },
      },
      svg("title", {}, run.error_message ? `${label}\n${run.error_message.slice(0, 300)}` : label),
    );
  }

  close() {
    this.observer.disconnect();
  }
}

function logTicks(low, high) {
  const values = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    const value = 10 ** power;
    if (value >= low && value <= high) values.push(value);
  }
  return values.length > 6 ? values.filter((_, index) => index % 2 === 0) : values;
}
