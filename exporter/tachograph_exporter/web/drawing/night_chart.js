// The chart of a night: names beside it, runs on a canvas, and a selection that keys and pointers move.

import { h, replace, setText } from "../dom.js";
import { duration } from "../format.js";
import { clock } from "../times.js";
import { CanvasPainter } from "./canvas_painter.js";
import { drawClockAxis } from "./clock_axis.js";
import { drag } from "./drag.js";
import { barOf, drawEdge, drawNightRow, rowHeight } from "./night_rows.js";
import { palette } from "./palette.js";

const AXIS_HEIGHT = 24;
const NARROW = 620;
const NAMES = 256;
const HEAD = 18;
const MARGIN = 10;
const MIN_SPAN = 60_000;
const MAX_EDGES = 400;
/** Names that have elements; a filter finds the others. */
export const MAX_ROWS = 1000;

/** `onSelect(item | null)`: a run, or a start that did not come; `onOpen(item)` when it is to be opened. */
export class NightChart {
  constructor({ onSelect, onOpen }) {
    this.onSelect = onSelect;
    this.onOpen = onOpen;
    this.rows = [];
    this.selected = null;
    this.hovered = null;
    this.showsEdges = false;
    this.view = null;
    this.colours = palette();
    this.axis = h("canvas", { class: "axis", "aria-hidden": "true" });
    this.canvas = h("canvas", { class: "bars", "aria-hidden": "true" });
    this.names = h("ul", { class: "night-names plain", "aria-label": "Workflows" });
    this.tip = h("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.keys = h(
      "div",
      {
        class: "night-keys",
        role: "application",
        tabindex: 0,
        id: "night-runs",
        "aria-label": "Runs. Arrow keys move from run to run, F to what went wrong, Enter opens it.",
        on: { keydown: (event) => this.key(event), focus: () => this.draw() },
      },
      this.canvas,
    );
    this.body = h("div", { class: "night-body" }, this.names, this.keys);
    this.scroll = h("div", { class: "night-rows" }, this.body);
    this.element = h("div", { class: "night-chart" }, this.axis, this.scroll, this.tip);
    this.scroll.addEventListener("scroll", () => this.draw(), { passive: true });
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => this.hover(null));
    this.canvas.addEventListener("dblclick", () => this.selected && this.onOpen(this.selected));
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    drag(
      this.canvas,
      (dx, _dy, isStart) => {
        if (isStart) this.dragged = { ...this.range };
        const { from, to } = this.dragged;
        const shift = (-dx * (to - from)) / this.width;
        this.showRange(from + shift, to + shift);
      },
      (event) => {
        this.select(this.at(event));
        this.keys.focus({ preventScroll: true });
      },
    );
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.element);
  }

  /** Show rows of a night; the selection stays, if what it is about is still there. */
  show(night, rows) {
    this.night = night;
    this.rows = rows.slice(0, MAX_ROWS);
    if (this.selected) this.selected = this.find(this.selected);
    this.hovered = null;
    this.arrange();
  }

  find(item) {
    if (item.id) return this.night.byId.get(item.id) ?? null;
    const row = this.rows.find(({ name }) => name === item.row.name);
    return row?.items.find((other) => other.at === item.at && other.state) ?? null;
  }

  arrange() {
    const head = this.isNarrow ? HEAD : 0;
    let top = 0;
    this.tops = this.rows.map((row) => {
      const mine = top;
      top += rowHeight(row, head);
      return mine;
    });
    this.height = top;
    this.place = new Map(this.rows.map((row, index) => [row, index]));
    this.body.style.height = `${top}px`;
    this.scroll.style.setProperty("--rows", String(top + 2));
    replace(
      this.names,
      this.rows.map((row, index) =>
        h(
          "li",
          { style: { top: `${this.tops[index]}px` }, class: row.missing ? "missing" : row.failed ? "failed" : "" },
          h(
            row.workflowId ? "a" : "span",
            row.workflowId ? { href: `#/workflows/${encodeURIComponent(row.workflowId)}`, title: row.name } : {},
            row.name,
          ),
          row.words ? h("span", { class: "words" }, row.words) : null,
        ),
      ),
    );
    this.resize();
  }

  get isNarrow() {
    return this.element.clientWidth < NARROW;
  }

  get now() {
    return Date.now();
  }

  /** The range of time that is shown. */
  get range() {
    return this.view ?? this.whole;
  }

  get whole() {
    if (!this.night) return { from: 0, to: 1 };
    return { from: this.night.from, to: this.night.last(this.now) };
  }

  showRange(from, to) {
    const { whole } = this;
    const span = Math.min(whole.to - whole.from, Math.max(MIN_SPAN, to - from));
    const begin = Math.min(Math.max(whole.from, from), whole.to - span);
    this.view = span >= (whole.to - whole.from) * 0.999 ? null : { from: begin, to: begin + span };
    this.draw();
  }

  zoom(factor, at = null) {
    const { from, to } = this.range;
    const centre = at ?? (this.selected ? (this.selected.start ?? this.selected.at) : (from + to) / 2);
    this.showRange(centre - (centre - from) * factor, centre + (to - centre) * factor);
  }

  wheel(event) {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    const { from, to } = this.range;
    const at = from + ((event.offsetX - MARGIN) / this.width) * (to - from);
    if (event.ctrlKey) this.zoom(1.0015 ** event.deltaY, at);
    else {
      const shift = ((event.deltaX || event.deltaY) * (to - from)) / this.width;
      this.showRange(from + shift, to + shift);
    }
  }

  resize() {
    if (this.isNarrow !== this.wasNarrow) {
      this.wasNarrow = this.isNarrow;
      this.element.classList.toggle("narrow", this.isNarrow);
      if (this.rows.length) this.arrange();
    }
    this.draw();
  }

  get left() {
    return this.isNarrow ? 0 : NAMES;
  }

  get width() {
    return Math.max(1, this.scroll.clientWidth - this.left - 2 * MARGIN);
  }

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.drawNow();
    });
  }

  drawNow() {
    const { night, scroll, colours, now } = this;
    if (!night || !this.element.isConnected) return;
    const width = scroll.clientWidth - this.left;
    const height = scroll.clientHeight;
    if (width < 10 || height < 10) return;
    const { from, to } = this.range;
    const perMs = this.width / (to - from);
    const x = (ms) => MARGIN + (ms - from) * perMs;
    const axis = new CanvasPainter(this.axis);
    Object.assign(this.axis.style, { width: `${width}px`, height: `${AXIS_HEIGHT}px`, marginLeft: `${this.left}px` });
    axis.begin(width, AXIS_HEIGHT);
    const ticks = { x, from, to, left: 0, right: width };
    drawClockAxis(axis, colours, { ...ticks, height: AXIS_HEIGHT, labels: 10 });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    const painter = new CanvasPainter(this.canvas);
    painter.begin(width, height);
    const top = scroll.scrollTop;
    drawClockAxis(painter, colours, { ...ticks, height });
    const head = this.isNarrow ? HEAD : 0;
    const place = { x, now, head, left: 0, right: width, look: (item) => this.look(item) };
    this.rows.forEach((row, index) => {
      const y = this.tops[index] - top;
      const tall = (this.tops[index + 1] ?? this.height) - this.tops[index];
      if (y > height || y + tall < 0) return;
      if (index) painter.line(0, y, width, y, colours.line);
      drawNightRow(painter, colours, row, { ...place, top: y });
    });
    if (now > from && now < to) {
      const at = x(now);
      painter.line(at, 0, at, height, colours.accent, { thick: 1.5 });
      axis.rect(at - 1, 14, 2, 10, colours.accent);
    }
    this.drawEdges(painter, place, top);
    this.canvas.dataset.runs = String(night.runCount);
  }

  drawEdges(painter, place, top) {
    const item = this.focusItem;
    const mine = (item && this.night.edgesOf.get(item)) ?? [];
    const others = this.showsEdges ? this.night.edges.slice(0, MAX_EDGES).filter((edge) => !mine.includes(edge)) : [];
    const bar = (run) => {
      const index = this.place.get(run.row);
      return index === undefined ? null : barOf(run, { ...place, top: this.tops[index] - top });
    };
    for (const [edges, isFaint] of [
      [others, true],
      [mine, false],
    ])
      for (const edge of edges) {
        const [source, target] = [bar(edge.source), bar(edge.target)];
        if (source && target)
          drawEdge(painter, this.colours, edge, { source, target, x: place.x }, { isFaint: isFaint && item !== null });
      }
  }

  /** What the pointer is on, else what is selected. */
  get focusItem() {
    return this.hovered ?? this.selected;
  }

  look(item) {
    const focus = this.focusItem;
    const edges = focus?.id ? this.night.edgesOf.get(focus) : null;
    const isDimmed = Boolean(edges) && item !== focus && !edges.some((e) => e.source === item || e.target === item);
    return { isSelected: item === this.selected, isDimmed };
  }

  /** What is at the pointer, or null. */
  at(event) {
    if (!this.night) return null;
    const y = event.offsetY + this.scroll.scrollTop;
    const index = this.tops.findLastIndex((top) => top <= y);
    const row = this.rows[index];
    if (!row) return null;
    const { from, to } = this.range;
    const perMs = this.width / (to - from);
    const x = (ms) => MARGIN + (ms - from) * perMs;
    const place = { x, now: this.now, top: this.tops[index], head: this.isNarrow ? HEAD : 0 };
    let nearest = null;
    let least = 7;
    for (const item of row.items) {
      let apart;
      if (item.id) {
        const { x1, x2, y: middle } = barOf(item, place);
        if (Math.abs(y - middle) > 9) continue;
        apart = Math.max(x1 - event.offsetX, event.offsetX - x2, 0);
      } else apart = Math.max(0, Math.abs(x(item.at) - event.offsetX) - 7);
      if (apart < least) [nearest, least] = [item, apart];
    }
    return nearest;
  }

  hover(event) {
    const item = event ? this.at(event) : null;
    this.canvas.style.cursor = item ? "pointer" : "";
    if (item !== this.hovered) {
      this.hovered = item;
      this.draw();
    }
    this.tip.hidden = !item;
    if (!item) return;
    setText(this.tip, textOf(item, this.now));
    const box = this.element.getBoundingClientRect();
    const left = event.clientX - box.left;
    const isRight = left > box.width / 2;
    this.tip.style.left = isRight ? "" : `${left + 14}px`;
    this.tip.style.right = isRight ? `${box.width - left + 14}px` : "";
    this.tip.style.top = `${event.clientY - box.top + 16}px`;
  }

  /** Select a run or a missing start, and bring it into view. */
  select(item, { isQuiet = false } = {}) {
    this.selected = item;
    if (item) this.reveal(item);
    this.draw();
    if (!isQuiet) this.onSelect(item);
  }

  reveal(item) {
    const index = this.place.get(item.row);
    if (index === undefined) return;
    const [top, bottom] = [this.tops[index], this.tops[index + 1] ?? this.height];
    const { scrollTop, clientHeight } = this.scroll;
    if (top < scrollTop) this.scroll.scrollTop = top;
    else if (bottom > scrollTop + clientHeight) this.scroll.scrollTop = bottom - clientHeight;
    const at = item.start ?? item.at;
    const { from, to } = this.range;
    if (this.view && (at < from || at > to)) this.showRange(at - (to - from) / 2, at + (to - from) / 2);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      ArrowRight: () => this.step(1),
      ArrowLeft: () => this.step(-1),
      ArrowDown: () => this.row(1),
      ArrowUp: () => this.row(-1),
      Home: () => this.step(-Infinity),
      End: () => this.step(Infinity),
      Enter: () => this.selected && this.onOpen(this.selected),
      Escape: () => this.select(null),
      f: () => this.nextTrouble(),
      "+": () => this.zoom(1 / 1.5),
      "=": () => this.zoom(1 / 1.5),
      "-": () => this.zoom(1.5),
      0: () => ((this.view = null), this.draw()),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  /** Select the first run, or the first thing of the first row. */
  first() {
    this.keys.focus();
    if (!this.selected) this.row(1);
  }

  step(by) {
    if (!this.selected) return this.row(1);
    const { items } = this.selected.row;
    const index = Math.min(items.length - 1, Math.max(0, items.indexOf(this.selected) + by));
    return this.select(items[index]);
  }

  row(by) {
    let index = this.selected ? (this.place.get(this.selected.row) ?? -1) : by > 0 ? -1 : this.rows.length;
    const time = this.selected ? (this.selected.start ?? this.selected.at) : null;
    for (index += by; index >= 0 && index < this.rows.length; index += by) {
      const { items } = this.rows[index];
      if (!items.length) continue;
      const apart = (item) => Math.abs((item.start ?? item.at) - time);
      return this.select(time === null ? items[0] : items.reduce((a, b) => (apart(b) < apart(a) ? b : a)));
    }
    return null;
  }

  nextTrouble() {
    const troubles = this.rows.flatMap((row) => row.items.filter(isTrouble));
    if (troubles.length) this.select(troubles[(troubles.indexOf(this.selected) + 1) % troubles.length]);
  }

  recolour() {
    this.colours = palette();
    this.draw();
  }

  close() {
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
  }
}

function isTrouble(item) {
  return item.state === "missing" || ["failed", "timeout", "lost"].includes(item.status);
}

/** What a run, or a start that did not come, is: for the pointer and for screen readers. */
export function textOf(item, now) {
  const at = (ms) => clock(new Date(ms));
  if (!item.id) {
    const states = {
      missing: "did not start; it was due",
      held: "did not start, because an earlier run took too long; it was due",
      due: "is due",
    };
    return `${item.row.name} ${states[item.state]} at ${at(item.at)}`;
  }
  const parts = [`${item.row.name}, ${item.status}`];
  if (item.end === null) {
    parts.push(`since ${at(item.start)}, for ${duration((now - item.start) / 1000)}`);
    if (item.eta !== null) parts.push(`expected to end at ${at(item.eta)}`);
  } else parts.push(`${at(item.start)} to ${at(item.end)}, ${duration((item.end - item.start) / 1000)}`);
  return parts.join("\n");
}
