// Draws into an SVG document, so that a saved picture is the same as on screen.

import { svg } from "../dom.js";
import { CanvasPainter, FONT_FAMILY } from "./canvas_painter.js";

/** Draws into an SVG document; has the same methods as `CanvasPainter`. */
export class SvgPainter {
  constructor() {
    this.ruler = new CanvasPainter(document.createElement("canvas"));
    this.clips = 0;
  }

  begin(width, height) {
    this.root = svg("svg", {
      xmlns: "http://www.w3.org/2000/svg",
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      "font-family": FONT_FAMILY,
    });
    this.at = this.root;
  }

  add(element) {
    this.at.append(element);
  }

  rect(x, y, width, height, colour, { alpha = 1, radius = 0 } = {}) {
    this.add(
      svg("rect", {
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
    this.add(svg("rect", { x, y, width, height, fill: "none", stroke: colour, "stroke-width": thick }));
  }

  line(x1, y1, x2, y2, colour, { thick = 1, dash = [] } = {}) {
    const dashes = dash.length ? dash.join(" ") : null;
    this.add(svg("line", { x1, y1, x2, y2, stroke: colour, "stroke-width": thick, "stroke-dasharray": dashes }));
  }

  curve([x1, y1, x2, y2, x3, y3, x4, y4], colour, { thick = 1, alpha = 1 } = {}) {
    const d = `M${x1} ${y1}C${x2} ${y2} ${x3} ${y3} ${x4} ${y4}`;
    this.add(svg("path", { d, fill: "none", stroke: colour, "stroke-width": thick, "stroke-opacity": alpha }));
  }

  polygon(points, colour) {
    this.add(svg("polygon", { points: points.join(" "), fill: colour }));
  }

  text(x, y, text, colour, { align = "left", bold = false, size = 12 } = {}) {
    const anchor = { left: "start", right: "end", center: "middle" }[align];
    this.add(
      svg(
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
    outer.append(svg("clipPath", { id }, svg("rect", { x, y, width, height })));
    this.at = svg("g", { "clip-path": `url(#${id})` });
    outer.append(this.at);
    work();
    this.at = outer;
  }

  toString() {
    return new XMLSerializer().serializeToString(this.root);
  }
}
