// One set of strokes, on a canvas or into an SVG document, so that a picture that is saved is the one that was seen.

import { s } from "./dom.js";

export const FONT = '12px system-ui, "DejaVu Sans", sans-serif';
const STATUS_COLOURS = [
  "completed",
  "failed",
  "running",
  "retrying",
  "skipped",
  "cancelled",
  "timeout",
  "lost",
  "pending",
];
const NAMES = [...STATUS_COLOURS, "text", "quiet", "line", "paper", "raised", "critical", "wait", "accent"];

/** The page's colours, as the browser works them out in the present theme. */
export function palette() {
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const found = {};
  for (const name of NAMES) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}

/** Draws on a canvas of so many CSS pixels, sharp on any screen. */
export class CanvasPainter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  begin(width, height, scale = window.devicePixelRatio || 1) {
    const { canvas, context } = this;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = FONT;
    context.textBaseline = "middle";
  }

  rect(x, y, width, height, colour, { alpha = 1, radius = 0 } = {}) {
    const { context } = this;
    context.globalAlpha = alpha;
    context.fillStyle = colour;
    if (radius && width > 2 * radius) {
      context.beginPath();
      context.roundRect(x, y, width, height, radius);
      context.fill();
    } else context.fillRect(x, y, width, height);
    context.globalAlpha = 1;
  }

  frame(x, y, width, height, colour, thick = 1) {
    this.context.strokeStyle = colour;
    this.context.lineWidth = thick;
    this.context.strokeRect(x, y, width, height);
  }

  line(x1, y1, x2, y2, colour, { thick = 1, dash = [] } = {}) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.setLineDash(dash);
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
    context.setLineDash([]);
  }

  curve(points, colour, { thick = 1, alpha = 1 } = {}) {
    const { context } = this;
    const [x1, y1, x2, y2, x3, y3, x4, y4] = points;
    context.globalAlpha = alpha;
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.beginPath();
    context.moveTo(x1, y1);
    context.bezierCurveTo(x2, y2, x3, y3, x4, y4);
    context.stroke();
    context.globalAlpha = 1;
  }

  polygon(points, colour) {
    const { context } = this;
    context.fillStyle = colour;
    context.beginPath();
    context.moveTo(points[0], points[1]);
    for (let i = 2; i < points.length; i += 2) context.lineTo(points[i], points[i + 1]);
    context.closePath();
    context.fill();
  }

  text(x, y, text, colour, { align = "left", bold = false, size = 12 } = {}) {
    const { context } = this;
    context.font = `${bold ? "600 " : ""}${FONT.replace("12px", `${size}px`)}`;
    context.fillStyle = colour;
    context.textAlign = align;
    context.fillText(text, x, y);
  }

  measure(text, { bold = false, size = 12 } = {}) {
    this.context.font = `${bold ? "600 " : ""}${FONT.replace("12px", `${size}px`)}`;
    return this.context.measureText(text).width;
  }

  /** Draw only inside of a rectangle. */
  within(x, y, width, height, work) {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    work();
    context.restore();
  }
}

/** Draws into an SVG document. */
export class SvgPainter {
  constructor() {
    this.ruler = new CanvasPainter(document.createElement("canvas"));
    this.clips = 0;
  }

  begin(width, height) {
    this.root = s("svg", {
      xmlns: "http://www.w3.org/2000/svg",
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      "font-family": 'system-ui, "DejaVu Sans", sans-serif',
    });
    this.at = this.root;
  }

  add(element) {
    this.at.append(element);
  }

  rect(x, y, width, height, colour, { alpha = 1, radius = 0 } = {}) {
    this.add(
      s("rect", {
        x,
        y,
        width,
        height,
        fill: colour,
        "fill-opacity": alpha === 1 ? null : alpha,
        rx: radius || null,
      }),
    );
  }

  frame(x, y, width, height, colour, thick = 1) {
    this.add(s("rect", { x, y, width, height, fill: "none", stroke: colour, "stroke-width": thick }));
  }

  line(x1, y1, x2, y2, colour, { thick = 1, dash = [] } = {}) {
    const dashes = dash.length ? dash.join(" ") : null;
    this.add(s("line", { x1, y1, x2, y2, stroke: colour, "stroke-width": thick, "stroke-dasharray": dashes }));
  }

  curve([x1, y1, x2, y2, x3, y3, x4, y4], colour, { thick = 1, alpha = 1 } = {}) {
    const d = `M${x1} ${y1}C${x2} ${y2} ${x3} ${y3} ${x4} ${y4}`;
    this.add(s("path", { d, fill: "none", stroke: colour, "stroke-width": thick, "stroke-opacity": alpha }));
  }

  polygon(points, colour) {
    this.add(s("polygon", { points: points.join(" "), fill: colour }));
  }

  text(x, y, text, colour, { align = "left", bold = false, size = 12 } = {}) {
    const anchor = { left: "start", right: "end", center: "middle" }[align];
    this.add(
      s(
        "text",
        {
          x,
          y,
          fill: colour,
          "text-anchor": anchor,
          "font-size": size,
          "font-weight": bold ? 600 : null,
          "dominant-baseline": "central",
        },
        text,
      ),
    );
  }

  measure(text, options) {
    return this.ruler.measure(text, options);
  }

  within(x, y, width, height, work) {
    const id = `clip${(this.clips += 1)}`;
    const outer = this.at;
    outer.append(s("clipPath", { id }, s("rect", { x, y, width, height })));
    this.at = s("g", { "clip-path": `url(#${id})` });
    outer.append(this.at);
    work();
    this.at = outer;
  }

  toString() {
    return new XMLSerializer().serializeToString(this.root);
  }
}

/** A text shortened to a width. */
export function fit(painter, text, width, options) {
  if (painter.measure(text, options) <= width) return text;
  let low = 0;
  let high = text.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (painter.measure(`${text.slice(0, middle)}…`, options) <= width) low = middle;
    else high = middle - 1;
  }
  return low ? `${text.slice(0, low)}…` : "";
}
