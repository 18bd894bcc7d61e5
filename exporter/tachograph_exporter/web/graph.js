// The dependency graph as a drawing: layers from left to right, lines that cross as little as a few sweeps can do.

import { h } from "./dom.js";
import { duration, STATUSES } from "./format.js";
import { CanvasPainter, fit, palette } from "./painter.js";
import { drag } from "./timeline.js";

const WIDE = 170;
const TALL = 38;
const GAP_X = 60;
const GAP_Y = 14;

/** Where each step stands. Layers by depth; within one, by the middle of what it hangs on, swept forth and back. */
export function layout(run) {
  const layers = [];
  for (const step of run.steps) (layers[step.depth] ??= []).push(step);
  const at = new Map();
  const settle = (layer) => layer.forEach((step, index) => at.set(step, index - layer.length / 2));
  layers.forEach(settle);
  const middle = (step, others) =>
    others.length ? others.reduce((sum, one) => sum + at.get(one), 0) / others.length : at.get(step);
  const above = (step) => step.dependsOn.map((id) => run.byId.get(id)).filter(Boolean);
  for (let sweep = 0; sweep < 4; sweep += 1) {
    const forth = sweep % 2 === 0;
    for (const layer of forth ? layers : [...layers].reverse()) {
      const wish = new Map(layer.map((step) => [step, middle(step, forth ? above(step) : step.dependents)]));
      layer.sort((a, b) => wish.get(a) - wish.get(b) || a.index - b.index);
      settle(layer);
    }
  }
  const places = new Map();
  layers.forEach((layer, depth) =>
    layer.forEach((step, index) => {
      places.set(step, { x: depth * (WIDE + GAP_X), y: (index - (layer.length - 1) / 2) * (TALL + GAP_Y) });
    }),
  );
  return places;
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
        for (const [step, at] of this.places) {
          if (x >= at.x && x <= at.x + WIDE && y >= at.y && y <= at.y + TALL) return this.onSelect(step);
        }
        return undefined;
      },
    );
    this.sizes = new ResizeObserver(() => this.resize());
    this.sizes.observe(this.element);
  }

  arrange() {
    this.places = layout(this.run);
    this.count = this.run.steps.length;
    this.camera = null;
  }

  changed() {
    if (this.count !== this.run.steps.length) this.arrange();
    this.draw();
  }

  resize() {
    const box = this.element.getBoundingClientRect();
    this.wide = Math.max(50, box.width);
    this.tall = Math.max(50, box.height);
    if (!this.camera) this.whole();
    this.draw();
  }

  whole() {
    let [left, top, right, bottom] = [0, 0, WIDE, TALL];
    for (const { x, y } of this.places.values()) {
      left = Math.min(left, x);
      top = Math.min(top, y);
      right = Math.max(right, x + WIDE);
      bottom = Math.max(bottom, y + TALL);
    }
    const scale = Math.min(1, (this.wide - 40) / (right - left), (this.tall - 40) / (bottom - top));
    this.camera = {
      scale,
      x: (this.wide - (left + right) * scale) / 2,
      y: (this.tall - (top + bottom) * scale) / 2,
    };
    this.draw();
  }

  zoom(factor, x = this.wide / 2, y = this.tall / 2) {
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
      0: () => this.whole(),
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
    if (this.asked || !this.wide) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      const painter = (this.painter ??= new CanvasPainter(this.canvas));
      painter.begin(this.wide, this.tall);
      this.canvas.style.width = `${this.wide}px`;
      this.canvas.style.height = `${this.tall}px`;
      this.paint(painter, this.camera, this.wide, this.tall);
    });
  }

  paint(painter, { x: dx, y: dy, scale }, wide, tall) {
    const { colours } = this;
    const screen = (at) => ({ x: at.x * scale + dx, y: at.y * scale + dy });
    const [w, t] = [WIDE * scale, TALL * scale];
    for (const [step, at] of this.places) {
      const to = screen(at);
      for (const id of step.dependsOn) {
        const other = this.run.byId.get(id);
        const from = other && screen(this.places.get(other));
        if (!from || to.x < 0 || from.x + w > wide + 2000 || (from.y < 0 && to.y < 0) || (from.y > tall && to.y > tall))
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
    for (const [step, at] of this.places) {
      const { x, y } = screen(at);
      if (x + w < 0 || y + t < 0 || x > wide || y > tall) continue;
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
          : duration(((this.run.reach(step, Date.now()) ?? step.start) - step.start) / 1000);
      painter.text(
        x + 12 * scale,
        y + 13 * scale,
        fit(painter, step.name, w - 20 * scale, { size: 12 * scale, bold: true }),
        colours.text,
        { size: 12 * scale, bold: true },
      );
      painter.text(
        x + 12 * scale,
        y + 28 * scale,
        fit(painter, `${STATUSES[step.status] ?? ""} ${length}`, w - 20 * scale, { size: 11 * scale }),
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
    this.sizes.disconnect();
    cancelAnimationFrame(this.asked);
  }
}
