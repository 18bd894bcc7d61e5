// The dependency graph of a run: layers from left to right, ordered to reduce crossing lines.

import { h } from "../dom.js";
import { duration, STATUS_SYMBOLS } from "../format.js";
import { now } from "../now.js";
import { CanvasPainter } from "./canvas_painter.js";
import { drag } from "./drag.js";
import { fitText } from "./fit_text.js";
import { nodesOf, summaryOf } from "./folding.js";
import { palette } from "./palette.js";

const NODE_WIDTH = 170;
const NODE_HEIGHT = 38;
const GAP_X = 60;
const GAP_Y = 14;

/** The position of each node: layers by depth, each ordered by the barycentre of its neighbours. */
export function layout(nodes) {
  const layers = [];
  for (const node of nodes) (layers[node.depth] ??= []).push(node);
  const filled = layers.filter(Boolean);
  const at = new Map();
  const setOrder = (layer) => layer.forEach((node, index) => at.set(node, index - layer.length / 2));
  filled.forEach(setOrder);
  const barycentre = (node, others) => {
    let sum = 0;
    for (const other of others) sum += at.get(other);
    return others.size ? sum / others.size : at.get(node);
  };
  for (let sweep = 0; sweep < 4; sweep += 1) {
    const isForward = sweep % 2 === 0;
    for (const layer of isForward ? filled : [...filled].reverse()) {
      const target = new Map(layer.map((node) => [node, barycentre(node, isForward ? node.before : node.after)]));
      layer.sort((one, two) => target.get(one) - target.get(two) || one.index - two.index);
      setOrder(layer);
    }
  }
  const positions = new Map();
  filled.forEach((layer, depth) =>
    layer.forEach((node, index) => {
      positions.set(node, {
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
    this.unfolded = new Set();
    this.foldsNothing = false;
    // Until the user moves it, the whole graph is shown, whatever the size of its box.
    this.isFitted = true;
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
        this.isFitted = false;
        this.camera.x = this.from.x + dx;
        this.camera.y = this.from.y + dy;
        this.draw();
      },
      (event) => {
        const [x, y] = [
          (event.offsetX - this.camera.x) / this.camera.scale,
          (event.offsetY - this.camera.y) / this.camera.scale,
        ];
        for (const [node, at] of this.positions) {
          if (x >= at.x && x <= at.x + NODE_WIDTH && y >= at.y && y <= at.y + NODE_HEIGHT) return this.pick(node);
        }
        return undefined;
      },
    );
    this.resizeObserver = new ResizeObserver(() => this.resize());
    this.resizeObserver.observe(this.element);
  }

  arrange() {
    this.positions = layout(nodesOf(this.run, this));
    this.count = this.run.steps.length;
    this.isFitted = true;
  }

  /** Select a step, or show the steps of a folded node. */
  pick(node) {
    if (node.steps.length === 1) return this.onSelect(node.steps[0]);
    this.unfolded.add(node.key);
    this.arrange();
    return this.showAll();
  }

  /** Whether siblings are folded. */
  get isFolding() {
    return !this.foldsNothing;
  }

  /** Fold all siblings, or show every step. */
  toggleFolding() {
    this.foldsNothing = !this.foldsNothing;
    this.unfolded.clear();
    this.arrange();
    this.showAll();
  }

  changed() {
    if (this.count !== this.run.steps.length) this.arrange();
    this.draw();
  }

  resize() {
    const box = this.element.getBoundingClientRect();
    this.width = Math.max(50, box.width);
    this.height = Math.max(50, box.height);
    if (this.isFitted || !this.camera) this.showAll();
    this.draw();
  }

  showAll() {
    this.isFitted = true;
    let [left, top, right, bottom] = [0, Infinity, NODE_WIDTH, -Infinity];
    for (const { x, y } of this.positions.values()) {
      left = Math.min(left, x);
      top = Math.min(top, y);
      right = Math.max(right, x + NODE_WIDTH);
      bottom = Math.max(bottom, y + NODE_HEIGHT);
    }
    if (!this.positions.size) [top, bottom] = [0, NODE_HEIGHT];
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
    this.isFitted = false;
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
    if (event.key.startsWith("Arrow")) this.isFitted = false;
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
    for (const [node, at] of this.positions) {
      const to = screen(at);
      for (const other of node.before) {
        const from = screen(this.positions.get(other));
        if (to.x < 0 || from.x + w > width + 2000 || (from.y < 0 && to.y < 0) || (from.y > height && to.y > height))
          continue;
        const isCritical = other.isCritical && node.isCritical;
        const isNear = this.isSelected(node) || this.isSelected(other);
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
    for (const [node, at] of this.positions) {
      const { x, y } = screen(at);
      if (x + w < 0 || y + t < 0 || x > width || y > height) continue;
      this.paintNode(painter, node, { x, y, w, t, scale });
    }
  }

  isSelected(node) {
    return this.selected !== null && node.steps.includes(this.selected);
  }

  paintNode(painter, node, { x, y, w, t, scale }) {
    const { colours } = this;
    const isFolded = node.steps.length > 1;
    const { counts, status } = summaryOf(node);
    const isSelected = this.isSelected(node);
    const frame = isSelected ? colours.accent : node.isCritical ? colours.critical : colours.line;
    // A stack of cards stands for the folded steps.
    if (isFolded) {
      painter.rect(x + 4 * scale, y + 4 * scale, w, t, colours.raised, { radius: 5 * scale });
      painter.frame(x + 4 * scale, y + 4 * scale, w, t, colours.line);
    }
    painter.rect(x, y, w, t, colours.raised, { radius: 5 * scale });
    painter.rect(x, y, Math.max(2, 5 * scale), t, colours[status] ?? colours.pending);
    painter.frame(x, y, w, t, frame, isSelected || node.isCritical ? 2 : 1);
    if (scale < 0.45) return;
    const text = (words, line, colour, options) =>
      painter.text(x + 12 * scale, y + line * scale, fitText(painter, words, w - 20 * scale, options), colour, options);
    text(node.name, 13, colours.text, { size: 12 * scale, bold: true });
    text(isFolded ? countsText(counts) : this.lengthText(node.steps[0]), 28, colours.quiet, { size: 11 * scale });
  }

  lengthText(step) {
    const length =
      step.start === null ? step.status : duration(((this.run.barEnd(step, now()) ?? step.start) - step.start) / 1000);
    return `${STATUS_SYMBOLS[step.status] ?? ""} ${length}`;
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

function countsText(counts) {
  return [...counts].map(([status, count]) => `${count} ${STATUS_SYMBOLS[status] ?? status}`).join("  ");
}
