// The dependency graph of a run: layers from left to right, ordered to reduce crossing lines.

import { h } from "../dom.js";
import { duration, STATUS_SYMBOLS } from "../format.js";
import { CanvasPainter } from "./canvas_painter.js";
import { drag } from "./drag.js";
import { fitText } from "./fit_text.js";
import { palette } from "./palette.js";

const NODE_WIDTH = 170;
const NODE_HEIGHT = 38;
const GAP_X = 60;
const GAP_Y = 14;

/** The position of each step: layers by depth, each ordered by the barycentre of its neighbours. */
export function layout(run) {
  const layers = [];
  for (const step of run.steps) (layers[step.depth] ??= []).push(step);
  const at = new Map();
  const setOrder = (layer) => layer.forEach((step, index) => at.set(step, index - layer.length / 2));
  layers.forEach(setOrder);
  const barycentre = (step, others) =>
    others.length ? others.reduce((sum, other) => sum + at.get(other), 0) / others.length : at.get(step);
  const dependenciesOf = (step) => step.dependsOn.map((id) => run.byId.get(id)).filter(Boolean);
  for (let sweep = 0; sweep < 4; sweep += 1) {
    const isForward = sweep % 2 === 0;
    for (const layer of isForward ? layers : [...layers].reverse()) {
      const target = new Map(
        layer.map((step) => [step, barycentre(step, isForward ? dependenciesOf(step) : step.dependents)]),
      );
      layer.sort((a, b) => target.get(a) - target.get(b) || a.index - b.index);
      setOrder(layer);
    }
  }
  const positions = new Map();
  layers.forEach((layer, depth) =>
    layer.forEach((step, index) => {
      positions.set(step, {
        x: depth * (NODE_WIDTH + GAP_X),
        y: (index - (layer.length - 1) / 2) * (NODE_HEIGHT + GAP_Y),
      });
    }),
  );
  return positions;
}

export class Graph {
  constructor(run, { onSelect }) {
    this.run = run;
    this.onSelect = onSelect;
    this.selected = null;
    this.colours = palette();
    this.canvas = h("canvas", {
      class: "graph",
      tabindex: 0,
      role: "img",
      "aria-label": "The dependency graph. The same steps are listed in the timeline.",
      on: { keydown: (event) => this.key(event) },
    });
    this.element = h("div", { class: "graphbox" }, this.canvas);
    this.arrange();
    this.canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoom(1.0015 ** -event.deltaY, event.offsetX, event.offsetY);
      },
      { passive: false },
    );
    drag(
      this.canvas,
      (dx, dy, start) => {
        if (start) this.from = { ...this.camera };
        this.camera.x = this.from.x + dx;
        this.camera.y = this.from.y + dy;
        this.draw();
      },
      (event) => {
        const [x, y] = [
          (event.offsetX - this.camera.x) / this.camera.scale,
          (event.offsetY - this.camera.y) / this.camera.scale,
        ];
        for (const [step, at] of this.positions) {
          if (x >= at.x && x <= at.x + NODE_WIDTH && y >= at.y && y <= at.y + NODE_HEIGHT) return this.onSelect(step);
        }
        return undefined;
      },
    );
    this.resizeObserver = new ResizeObserver(() => this.resize());
    this.resizeObserver.observe(this.element);
  }

  arrange() {
    this.positions = layout(this.run);
    this.count = this.run.steps.length;
    this.camera = null;
  }

  changed() {
    if (this.count !== this.run.steps.length) this.arrange();
    this.draw();
  }

  resize() {
    const box = this.element.getBoundingClientRect();
    this.width = Math.max(50, box.width);
    this.height = Math.max(50, box.height);
    if (!this.camera) this.showAll();
    this.draw();
  }

  showAll() {
    let [left, top, right, bottom] = [0, 0, NODE_WIDTH, NODE_HEIGHT];
    for (const { x, y } of this.positions.values()) {
      left = Math.min(left, x);
      top = Math.min(top, y);
      right = Math.max(right, x + NODE_WIDTH);
      bottom = Math.max(bottom, y + NODE_HEIGHT);
    }
    const scale = Math.min(1, (this.width - 40) / (right - left), (this.height - 40) / (bottom - top));
    this.camera = {
      scale,
      x: (this.width - (left + right) * scale) / 2,
      y: (this.height - (top + bottom) * scale) / 2,
    };
    this.draw();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.min(3, Math.max(0.005, this.camera.scale * factor));
    const by = scale / this.camera.scale;
    this.camera = { scale, x: x - (x - this.camera.x) * by, y: y - (y - this.camera.y) * by };
    this.draw();
  }

  key(event) {
    const moves = {
      "+": () => this.zoom(1.3),
      "=": () => this.zoom(1.3),
      "-": () => this.zoom(1 / 1.3),
      0: () => this.showAll(),
      ArrowLeft: () => (this.camera.x += 60),
      ArrowRight: () => (this.camera.x -= 60),
      ArrowUp: () => (this.camera.y += 60),
      ArrowDown: () => (this.camera.y -= 60),
    };
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    move();
    this.draw();
  }

  select(step) {
    this.selected = step;
    this.draw();
  }

  draw() {
    if (this.frameRequest || !this.width) return;
    this.frameRequest = requestAnimationFrame(() => {
      this.frameRequest = 0;
      const painter = (this.painter ??= new CanvasPainter(this.canvas));
      painter.begin(this.width, this.height);
      this.canvas.style.width = `${this.width}px`;
      this.canvas.style.height = `${this.height}px`;
      this.paint(painter, this.camera, this.width, this.height);
    });
  }

  paint(painter, { x: dx, y: dy, scale }, width, height) {
    const { colours } = this;
    const screen = (at) => ({ x: at.x * scale + dx, y: at.y * scale + dy });
    const [w, t] = [NODE_WIDTH * scale, NODE_HEIGHT * scale];
    for (const [step, at] of this.positions) {
      const to = screen(at);
      for (const id of step.dependsOn) {
        const other = this.run.byId.get(id);
        const from = other && screen(this.positions.get(other));
        if (
          !from ||
          to.x < 0 ||
          from.x + w > width + 2000 ||
          (from.y < 0 && to.y < 0) ||
          (from.y > height && to.y > height)
        )
          continue;
        const isCritical = other.isCritical && step.isCritical;
        const isNear = step === this.selected || other === this.selected;
        const bend = Math.max(10, (to.x - from.x - w) / 2);
        painter.curve(
          [
            from.x + w,
            from.y + t / 2,
            from.x + w + bend,
            from.y + t / 2,
            to.x - bend,
            to.y + t / 2,
            to.x,
            to.y + t / 2,
          ],
          isNear ? colours.accent : isCritical ? colours.critical : colours.quiet,
          { thick: isCritical || isNear ? 2 : 1, alpha: isCritical || isNear ? 1 : 0.45 },
        );
      }
    }
    for (const [step, at] of this.positions) {
      const { x, y } = screen(at);
      if (x + w < 0 || y + t < 0 || x > width || y > height) continue;
      painter.rect(x, y, w, t, colours.raised, { radius: 5 * scale });
      painter.rect(x, y, Math.max(2, 5 * scale), t, colours[step.status] ?? colours.pending);
      painter.frame(
        x,
        y,
        w,
        t,
        step === this.selected ? colours.accent : step.isCritical ? colours.critical : colours.line,
        step === this.selected || step.isCritical ? 2 : 1,
      );
      if (scale < 0.45) continue;
      const length =
        step.start === null
          ? step.status
          : duration(((this.run.barEnd(step, Date.now()) ?? step.start) - step.start) / 1000);
      painter.text(
        x + 12 * scale,
        y + 13 * scale,
        fitText(painter, step.name, w - 20 * scale, { size: 12 * scale, bold: true }),
        colours.text,
        { size: 12 * scale, bold: true },
      );
      painter.text(
        x + 12 * scale,
        y + 28 * scale,
        fitText(painter, `${STATUS_SYMBOLS[step.status] ?? ""} ${length}`, w - 20 * scale, { size: 11 * scale }),
        colours.quiet,
        { size: 11 * scale },
      );
    }
  }

  recolour() {
    this.colours = palette();
    this.draw();
  }

  close() {
    this.resizeObserver.disconnect();
    cancelAnimationFrame(this.frameRequest);
  }
}
