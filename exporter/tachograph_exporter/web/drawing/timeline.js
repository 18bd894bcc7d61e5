// The timeline of a run: names that a screen reader can read, bars on a canvas beside them, an overview above.

import { h, replace, setText } from "../dom.js";
import { duration, STATUS_SYMBOLS, times } from "../format.js";
import { now as currently } from "../now.js";
import { sortSteps } from "../run.js";
import { clock } from "../times.js";
import { drawAxis } from "./axis.js";
import { CanvasPainter } from "./canvas_painter.js";
import { drag } from "./drag.js";
import { drawDependencies, drawRow, ROW_HEIGHT } from "./gantt.js";
import { drawMinimap } from "./minimap.js";
import { palette } from "./palette.js";

const AXIS_HEIGHT = 24;
const MAP_HEIGHT = 36;
/** Rows above and below the visible ones that have elements, too. */
const SPARE_ROWS = 6;
export class Timeline {
  /** `onSelect(step | null)` is called when the selection changes, `onView({from, to} | null)` when the user has chosen
   *  another range of time, in ms since the start; null is the whole run. */
  constructor(run, { onSelect, onView = () => {} }) {
    this.run = run;
    this.onSelect = onSelect;
    this.onView = onView;
    this.options = { order: "start", text: "", statuses: new Set() };
    this.selected = null;
    this.view = { from: 0, to: 1, isWhole: true };
    this.colours = palette();
    this.drawn = 0;
    this.rows = [];
    this.build();
    this.arrange();
    this.resizeObserver = new ResizeObserver(() => this.resize());
    this.resizeObserver.observe(this.element);
  }

  build() {
    this.map = h("canvas", { class: "map", role: "img", "aria-label": "Overview of the whole run" });
    this.canvas = h("canvas", { class: "bars", "aria-hidden": "true" });
    this.axis = h("canvas", { class: "axis", "aria-hidden": "true" });
    this.list = h("div", {
      class: "names",
      role: "listbox",
      tabindex: 0,
      "aria-label": "Steps",
      id: "steps",
      on: { keydown: (event) => this.key(event), click: (event) => this.click(event) },
    });
    this.tip = h("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.body = h("div", { class: "body" }, this.list, this.canvas);
    this.scroll = h("div", { class: "rows" }, this.body);
    this.empty = h("p", { class: "empty", hidden: true }, "No steps match the filter.");
    this.element = h(
      "div",
      { class: "timeline" },
      h("div", { class: "maprow" }, h("span", { class: "corner" }), this.map),
      h("div", { class: "axisrow" }, h("span", { class: "corner quiet" }, "step"), this.axis),
      this.empty,
      this.scroll,
      this.tip,
    );
    this.scroll.addEventListener("scroll", () => this.draw(), { passive: true });
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.canvas.addEventListener("pointermove", (event) => {
      this.setPointer(event.offsetX);
      this.showTip(event);
    });
    this.canvas.addEventListener("pointerleave", () => {
      this.setPointer(null);
      this.tip.hidden = true;
    });
    this.canvas.addEventListener("dblclick", () => this.selected && this.zoomTo(this.selected));
    drag(
      this.canvas,
      (dx, dy, start) => {
        if (start) this.dragged = { ...this.view, top: this.scroll.scrollTop };
        const msPerPixel = (this.dragged.to - this.dragged.from) / this.width;
        this.showRange(this.dragged.from - dx * msPerPixel, this.dragged.to - dx * msPerPixel);
        this.scroll.scrollTop = this.dragged.top - dy;
      },
      (event) => this.pick(event),
    );
    drag(this.map, (_dx, _dy, _start, event) => {
      const box = this.map.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * this.total;
      const half = (this.view.to - this.view.from) / 2;
      this.showRange(at - half, at + half);
    });
  }

  get total() {
    return Math.max(1, this.run.length());
  }

  /** Filter and sort the rows again. */
  arrange() {
    const selectedId = this.selected?.id;
    this.rows = sortSteps(this.run, this.options);
    this.rowIndex = new Map(this.rows.map((step, index) => [step, index]));
    this.selected = selectedId ? (this.run.byId.get(selectedId) ?? null) : null;
    this.empty.hidden = this.rows.length > 0 || this.run.steps.length === 0;
    this.body.style.height = `${this.rows.length * ROW_HEIGHT}px`;
    this.scroll.style.setProperty(
      "--rows",
      String(Math.max(this.run.timeline.step_count, this.run.steps.length) * ROW_HEIGHT + 2),
    );
    this.pool = null;
    this.resize();
  }

  /** Update the drawing after events. `isOrdered` forces a new order of the rows. */
  changed({ isOrdered = false } = {}) {
    if (isOrdered || this.rows.length !== this.run.steps.length || this.options.order === "start") this.arrangeSoon();
    this.draw();
  }

  arrangeSoon() {
    if (this.arranging) return;
    // Limits how often the rows are sorted when there are thousands of steps and events.
    this.arranging = setTimeout(
      () => {
        this.arranging = 0;
        this.arrange();
      },
      this.run.steps.length > 500 ? 500 : 60,
    );
  }

  /** Show a range of time, from a microsecond up to the whole run. */
  showRange(from, to) {
    const total = this.total;
    const span = Math.min(total, Math.max(0.001, to - from));
    const start = Math.min(Math.max(0, from), total - span);
    this.view = { from: start, to: start + span, isWhole: span >= total * 0.9999 };
    this.onView(this.view.isWhole ? null : this.view);
    this.draw();
  }

  zoom(factor, at = (this.view.from + this.view.to) / 2) {
    const { from, to } = this.view;
    this.showRange(at - (at - from) * factor, at + (to - at) * factor);
  }

  showAll() {
    this.showRange(0, this.total);
  }

  /** Show what the bar under the pointer says, beside it. */
  showTip(event) {
    const box = this.element.getBoundingClientRect();
    const step = this.rows[Math.floor((event.offsetY + this.scroll.scrollTop) / ROW_HEIGHT)];
    const { from, to } = this.view;
    const x = (at) => ((at - from) / (to - from)) * this.width;
    const first = step && (step.start ?? step.end);
    const isOver =
      first !== null &&
      first !== undefined &&
      event.buttons === 0 &&
      event.offsetX >= x(step.ready ?? first) - 6 &&
      event.offsetX <= x(this.run.barEnd(step, currently()) ?? first) + 8;
    this.tip.hidden = !isOver;
    if (!isOver) return;
    replace(
      this.tip,
      h("b", {}, step.name),
      this.tipLines(step).map((line) => h("div", {}, line)),
    );
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    const { offsetWidth: width, offsetHeight: height } = this.tip;
    this.tip.style.left = `${Math.max(4, Math.min(left + 12, box.width - width - 4))}px`;
    this.tip.style.top = `${top + 18 + height > box.height ? Math.max(0, top - height - 10) : top + 18}px`;
  }

  tipLines(step) {
    const { run } = this;
    const lines = [`${STATUS_SYMBOLS[step.status] ?? ""} ${step.status}`];
    if (step.start !== null) {
      const length = duration(((run.barEnd(step, currently()) ?? step.start) - step.start) / 1000);
      lines.push(`${length}, from ${duration(step.start / 1000)} after the start`);
    }
    const usual = run.usual.get(step.id);
    if (usual) lines.push(usualText(usual));
    const queued = step.attempts.reduce((sum, attempt) => sum + attempt.queue, 0);
    if (queued >= 1) lines.push(`waited ${duration(queued / 1000)} for a slot`);
    if (step.attempts.length > 1) lines.push(`${step.attempts.length} attempts`);
    if (step.isCritical) lines.push("on the critical path");
    const error = step.attempts.at(-1)?.error ?? step.entry.error_message;
    if (error) lines.push(error.slice(0, 200));
    return lines;
  }

  /** Show the time at the pointer, `x` pixels from the left; null hides it. */
  setPointer(x) {
    this.pointer = x;
    this.draw();
  }

  /** Zoom to a step, with some margin. */
  zoomTo(step) {
    if (step.start === null) return;
    const end = this.run.barEnd(step, currently()) ?? step.start;
    const margin = Math.max((end - step.start) * 0.3, this.total / 2000);
    this.showRange(step.start - margin, end + margin);
  }

  select(step, { scroll = true } = {}) {
    this.selected = step;
    if (step && scroll) {
      const top = (this.rowIndex.get(step) ?? 0) * ROW_HEIGHT;
      const { scrollTop, clientHeight } = this.scroll;
      if (top < scrollTop) this.scroll.scrollTop = top;
      else if (top + ROW_HEIGHT > scrollTop + clientHeight) this.scroll.scrollTop = top + ROW_HEIGHT - clientHeight;
    }
    this.draw();
    this.onSelect(step);
  }

  resize() {
    const box = this.canvas.parentElement.getBoundingClientRect();
    const names = this.list.getBoundingClientRect().width;
    this.width = Math.max(50, box.width - names);
    this.height = this.scroll.clientHeight || 400;
    this.draw();
  }

  /** Draw in the next frame. */
  draw() {
    if (this.frameRequest) return;
    this.frameRequest = requestAnimationFrame(() => {
      this.frameRequest = 0;
      this.paint();
    });
  }

  paint() {
    const now = currently();
    if (this.view.isWhole) Object.assign(this.view, { from: 0, to: this.total });
    const { from, to } = this.view;
    const x = (at) => ((at - from) / (to - from)) * this.width;
    const top = this.scroll.scrollTop;
    const first = Math.max(0, Math.floor(top / ROW_HEIGHT));
    const last = Math.min(this.rows.length, Math.ceil((top + this.height) / ROW_HEIGHT));
    this.canvas.style.transform = `translateY(${top}px)`;
    const painter = (this.painter ??= new CanvasPainter(this.canvas));
    painter.begin(this.width, this.height);
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${this.height}px`;
    drawAxis(painter, this.colours, { x, from, to, left: 0, width: this.width, height: this.height, top: 0 });
    // Below the bars and their labels, so that nothing is drawn through these.
    if (this.selected) {
      const rowTop = (step) => (this.rowIndex.has(step) ? this.rowIndex.get(step) * ROW_HEIGHT - top : null);
      drawDependencies(painter, this.colours, this.run, this.selected, { x, rowTop, now });
    }
    for (let i = first; i < last; i += 1) {
      drawRow(painter, this.colours, this.run, this.rows[i], {
        x,
        y: i * ROW_HEIGHT - top,
        now,
        left: 0,
        right: this.width,
        isSelected: this.rows[i] === this.selected,
      });
    }
    if (this.run.isOpen && from <= this.total && this.total <= to) {
      painter.line(x(this.total), 0, x(this.total), this.height, this.colours.running, { dash: [2, 2] });
    }
    const axisPainter = (this.axisPainter ??= new CanvasPainter(this.axis));
    axisPainter.begin(this.width, AXIS_HEIGHT);
    this.axis.style.width = `${this.width}px`;
    drawAxis(axisPainter, this.colours, {
      x,
      from,
      to,
      left: 0,
      width: this.width,
      height: AXIS_HEIGHT,
      top: AXIS_HEIGHT - 5,
      labels: AXIS_HEIGHT / 2 - 1,
    });
    if (this.pointer !== null && this.pointer !== undefined) {
      const at = from + (this.pointer / this.width) * (to - from);
      painter.line(this.pointer, 0, this.pointer, this.height, this.colours.quiet, { dash: [1, 3] });
      const text = `${duration(at / 1000)} · ${clock(new Date(this.run.origin + at), { milliseconds: true })}`;
      const width = axisPainter.measure(text, { size: 11 }) + 8;
      const left = Math.min(Math.max(0, this.pointer - width / 2), this.width - width);
      axisPainter.rect(left, 0, width, AXIS_HEIGHT, this.colours.raised);
      axisPainter.text(left + 4, AXIS_HEIGHT / 2 - 1, text, this.colours.text, { size: 11 });
    }
    this.paintMap(now);
    this.updateNames(first, last);
    this.drawn += 1;
  }

  paintMap(now) {
    // The overview visits every step, so for a long run it is not drawn in every frame.
    const at = performance.now();
    if (this.run.steps.length > 1000 && at - (this.mapDrawnAt ?? -Infinity) < 250) {
      this.mapTimer ??= setTimeout(() => {
        this.mapTimer = null;
        this.paintMap(currently());
      }, 260);
      return;
    }
    this.mapDrawnAt = at;
    const painter = (this.mapPainter ??= new CanvasPainter(this.map));
    painter.begin(this.width, MAP_HEIGHT);
    this.map.style.width = `${this.width}px`;
    drawMinimap(painter, this.colours, this.run, { width: this.width, height: MAP_HEIGHT, view: this.view, now });
  }

  /** Update the names of the visible rows and a few around them; their elements are reused. */
  updateNames(first, last) {
    const from = Math.max(0, first - SPARE_ROWS);
    const to = Math.min(this.rows.length, last + SPARE_ROWS);
    const count = to - from;
    if (!this.pool || this.pool.length !== count) {
      this.pool = Array.from({ length: count }, () => {
        const text = h("span", { class: "name" });
        const mark = h("span", { class: "mark", "aria-hidden": "true" });
        const element = h("div", { role: "option", class: "step" }, mark, text);
        return { element, text, mark, step: null, key: "" };
      });
      replace(
        this.list,
        this.pool.map(({ element }) => element),
      );
    }
    for (let i = 0; i < count; i += 1) {
      const step = this.rows[from + i];
      const isSelected = step === this.selected;
      const key = `${from + i} ${step.id} ${step.status} ${isSelected} ${step.isCritical} ${step.attempts.length} ${this.run.usual.get(step.id)?.isSlow}`;
      const row = this.pool[i];
      if (row.key === key) continue;
      row.key = key;
      row.step = step;
      const { element } = row;
      element.id = `step-${from + i}`;
      element.style.transform = `translateY(${(from + i) * ROW_HEIGHT}px)`;
      element.className = `step ${step.status}${isSelected ? " selected" : ""}${step.isCritical ? " critical" : ""}`;
      element.setAttribute("aria-selected", String(isSelected));
      element.setAttribute("aria-posinset", String(from + i + 1));
      element.setAttribute("aria-setsize", String(this.rows.length));
      element.setAttribute("aria-label", this.label(step));
      setText(row.text, step.name);
      element.title = step.name;
      setText(row.mark, STATUS_SYMBOLS[step.status] ?? "·");
      element.style.setProperty("--indent", String(Math.min(step.depth, 8) * (this.options.order === "depth" ? 8 : 0)));
    }
    const at = this.selected ? this.rowIndex.get(this.selected) : undefined;
    if (at === undefined) this.list.removeAttribute("aria-activedescendant");
    else this.list.setAttribute("aria-activedescendant", `step-${at}`);
  }

  label(step) {
    const parts = [step.name, step.status];
    if (step.start !== null) {
      parts.push(duration(((this.run.barEnd(step, currently()) ?? step.start) - step.start) / 1000));
    }
    const usual = this.run.usual.get(step.id);
    if (usual?.isSlow) parts.push(usualText(usual));
    if (step.attempts.length > 1) parts.push(`${step.attempts.length} attempts`);
    if (step.isCritical) parts.push("on the critical path");
    return parts.join(", ");
  }

  click(event) {
    const row = this.pool?.find(({ element }) => element.contains(event.target));
    if (row) this.select(row.step, { scroll: false });
  }

  pick(event) {
    const box = this.canvas.getBoundingClientRect();
    const step = this.rows[Math.floor((event.clientY - box.top + this.scroll.scrollTop) / ROW_HEIGHT)];
    if (step) this.select(step, { scroll: false });
    this.list.focus({ preventScroll: true });
  }

  wheel(event) {
    const { from, to } = this.view;
    if (event.ctrlKey || event.metaKey || event.altKey) {
      event.preventDefault();
      const box = this.canvas.getBoundingClientRect();
      this.zoom(1.0015 ** event.deltaY, from + ((event.clientX - box.left) / this.width) * (to - from));
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      const by = ((event.deltaX || event.deltaY) / this.width) * (to - from);
      this.showRange(from + by, to + by);
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.selected ? (this.rowIndex.get(this.selected) ?? -1) : -1;
    const page = Math.max(1, Math.floor(this.height / ROW_HEIGHT) - 1);
    const span = this.view.to - this.view.from;
    const go = (index) =>
      this.rows.length && this.select(this.rows[Math.min(this.rows.length - 1, Math.max(0, index))]);
    const moves = {
      ArrowDown: () => go(at + 1),
      ArrowUp: () => go(at < 0 ? 0 : at - 1),
      PageDown: () => go(at + page),
      PageUp: () => go(at - page),
      Home: () => go(0),
      End: () => go(this.rows.length - 1),
      ArrowLeft: () => this.showRange(this.view.from - span / 8, this.view.to - span / 8),
      ArrowRight: () => this.showRange(this.view.from + span / 8, this.view.to + span / 8),
      "+": () => this.zoom(0.7),
      "=": () => this.zoom(0.7),
      "-": () => this.zoom(1 / 0.7),
      0: () => this.showAll(),
      Enter: () => this.selected && this.zoomTo(this.selected),
      Escape: () => this.select(null),
      c: () => this.selectCritical(at),
      C: () => this.selectCritical(at, -1),
      f: () => this.selectFailed(at),
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    move();
  }

  /** Select the next step on the critical path after row `at`, wrapping around. */
  selectCritical(at, by = 1) {
    this.seek(at, by, (step) => step.isCritical);
  }

  selectFailed(at) {
    this.seek(at, 1, (step) => ["failed", "timeout", "lost"].includes(step.status));
  }

  seek(at, by, matches) {
    const count = this.rows.length;
    for (let i = 1; i <= count; i += 1) {
      const index = (((at + by * i) % count) + count) % count;
      if (matches(this.rows[index])) return this.select(this.rows[index]);
    }
    return undefined;
  }

  recolour() {
    this.colours = palette();
    this.draw();
  }

  close() {
    this.resizeObserver.disconnect();
    cancelAnimationFrame(this.frameRequest);
    clearTimeout(this.arranging);
    clearTimeout(this.mapTimer);
  }
}

function usualText({ seconds, ratio, isSlow }) {
  return `usually ${duration(seconds)}${isSlow ? `, ${times(ratio)}` : ""}`;
}
