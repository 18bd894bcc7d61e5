// The drawing of a run: rows of names that a screen reader can read, bars on a canvas beside them, a map of the whole above.

import { h, replace, say } from "./dom.js";
import { duration, STATUSES } from "./format.js";
import { axis, dependencies, minimap, row, ROW } from "./gantt.js";
import { arranged } from "./model.js";
import { CanvasPainter, palette } from "./painter.js";

const AXIS = 24;
const SPARE = 6;
const CLOCK = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
  hour12: false,
});

export class Timeline {
  /** `onSelect(step | null)` when another step is chosen. */
  constructor(run, { onSelect }) {
    this.run = run;
    this.onSelect = onSelect;
    this.options = { order: "start", text: "", statuses: new Set() };
    this.selected = null;
    this.view = { from: 0, to: 1, isWhole: true };
    this.colours = palette();
    this.drawn = 0;
    this.rows = [];
    this.build();
    this.arrange();
    this.sizes = new ResizeObserver(() => this.resize());
    this.sizes.observe(this.element);
  }

  build() {
    this.map = h("canvas", { class: "map", role: "img", "aria-label": "The whole run, small" });
    this.canvas = h("canvas", { class: "bars", "aria-hidden": "true" });
    this.head = h("canvas", { class: "axis", "aria-hidden": "true" });
    this.list = h("div", {
      class: "names",
      role: "listbox",
      tabindex: 0,
      "aria-label": "Steps",
      id: "steps",
      on: { keydown: (event) => this.key(event), click: (event) => this.click(event) },
    });
    this.body = h("div", { class: "body" }, this.list, this.canvas);
    this.scroll = h("div", { class: "rows" }, this.body);
    this.empty = h("p", { class: "empty", hidden: true }, "No step fits the filter.");
    this.element = h(
      "div",
      { class: "timeline" },
      h("div", { class: "maprow" }, h("span", { class: "corner" }), this.map),
      h("div", { class: "axisrow" }, h("span", { class: "corner quiet" }, "step"), this.head),
      this.scroll,
      this.empty,
    );
    this.scroll.addEventListener("scroll", () => this.draw(), { passive: true });
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("dblclick", () => this.selected && this.show(this.selected));
    drag(
      this.canvas,
      (dx, dy, start) => {
        if (start) this.dragged = { ...this.view, top: this.scroll.scrollTop };
        const each = (this.dragged.to - this.dragged.from) / this.wide;
        this.look(this.dragged.from - dx * each, this.dragged.to - dx * each);
        this.scroll.scrollTop = this.dragged.top - dy;
      },
      (event) => this.pick(event),
    );
    drag(this.map, (_dx, _dy, _start, event) => {
      const box = this.map.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * this.total;
      const half = (this.view.to - this.view.from) / 2;
      this.look(at - half, at + half);
    });
  }

  get total() {
    return Math.max(1, this.run.length());
  }

  /** Order and choose the rows anew. */
  arrange() {
    const before = this.selected?.id;
    this.rows = arranged(this.run, this.options);
    this.place = new Map(this.rows.map((step, index) => [step, index]));
    this.selected = before ? (this.run.byId.get(before) ?? null) : null;
    this.empty.hidden = this.rows.length > 0 || this.run.steps.length === 0;
    this.body.style.height = `${this.rows.length * ROW}px`;
    this.scroll.style.setProperty(
      "--rows",
      String(Math.max(this.run.timeline.step_count, this.run.steps.length) * ROW + 2),
    );
    this.pool = null;
    this.resize();
  }

  /** The run has changed: steps began, ended, or are new. */
  changed({ isOrdered = false } = {}) {
    if (isOrdered || this.rows.length !== this.run.steps.length || this.options.order === "start") this.arrangeSoon();
    this.draw();
  }

  arrangeSoon() {
    if (this.arranging) return;
    // Thousands of events a second must not sort thousands of rows as often.
    this.arranging = setTimeout(
      () => {
        this.arranging = 0;
        this.arrange();
      },
      this.run.steps.length > 500 ? 500 : 60,
    );
  }

  /** Look at a stretch of time; no further in than a microsecond, no further out than the whole. */
  look(from, to) {
    const total = this.total;
    const span = Math.min(total, Math.max(0.001, to - from));
    const begun = Math.min(Math.max(0, from), total - span);
    this.view = { from: begun, to: begun + span, isWhole: span >= total * 0.9999 };
    this.draw();
  }

  zoom(factor, at = (this.view.from + this.view.to) / 2) {
    const { from, to } = this.view;
    this.look(at - (at - from) * factor, at + (to - at) * factor);
  }

  whole() {
    this.look(0, this.total);
  }

  /** Where the pointer is, told as the time of day and since the start. */
  point(at) {
    this.pointer = at;
    this.draw();
  }

  /** Bring a step before the eyes, with some time around it. */
  show(step) {
    if (step.start === null) return;
    const end = this.run.reach(step, Date.now()) ?? step.start;
    const around = Math.max((end - step.start) * 0.3, this.total / 2000);
    this.look(step.start - around, end + around);
  }

  select(step, { scroll = true } = {}) {
    this.selected = step;
    if (step && scroll) {
      const top = (this.place.get(step) ?? 0) * ROW;
      const { scrollTop, clientHeight } = this.scroll;
      if (top < scrollTop) this.scroll.scrollTop = top;
      else if (top + ROW > scrollTop + clientHeight) this.scroll.scrollTop = top + ROW - clientHeight;
    }
    this.draw();
    this.onSelect(step);
  }

  resize() {
    const box = this.canvas.parentElement.getBoundingClientRect();
    const names = this.list.getBoundingClientRect().width;
    this.wide = Math.max(50, box.width - names);
    this.tall = this.scroll.clientHeight || 400;
    this.draw();
  }

  /** Draw at the next frame, once. */
  draw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.paint();
    });
  }

  paint() {
    const now = Date.now();
    if (this.view.isWhole) Object.assign(this.view, { from: 0, to: this.total });
    const { from, to } = this.view;
    const x = (at) => ((at - from) / (to - from)) * this.wide;
    const top = this.scroll.scrollTop;
    const first = Math.max(0, Math.floor(top / ROW));
    const last = Math.min(this.rows.length, Math.ceil((top + this.tall) / ROW));
    this.canvas.style.transform = `translateY(${top}px)`;
    const painter = (this.painter ??= new CanvasPainter(this.canvas));
    painter.begin(this.wide, this.tall);
    this.canvas.style.width = `${this.wide}px`;
    this.canvas.style.height = `${this.tall}px`;
    axis(painter, this.colours, { x, from, to, left: 0, width: this.wide, height: this.tall, top: 0 });
    for (let i = first; i < last; i += 1) {
      row(painter, this.colours, this.run, this.rows[i], {
        x,
        y: i * ROW - top,
        now,
        left: 0,
        right: this.wide,
        isSelected: this.rows[i] === this.selected,
      });
    }
    if (this.selected) {
      const place = (step) => (this.place.has(step) ? this.place.get(step) * ROW - top : null);
      dependencies(painter, this.colours, this.run, this.selected, { x, place, now });
    }
    if (this.run.isOpen && from <= this.total && this.total <= to) {
      painter.line(x(this.total), 0, x(this.total), this.tall, this.colours.running, { dash: [2, 2] });
    }
    const head = (this.headPainter ??= new CanvasPainter(this.head));
    head.begin(this.wide, AXIS);
    this.head.style.width = `${this.wide}px`;
    axis(head, this.colours, {
      x,
      from,
      to,
      left: 0,
      width: this.wide,
      height: AXIS,
      top: AXIS - 5,
      labels: AXIS / 2 - 1,
    });
    if (this.pointer !== null && this.pointer !== undefined) {
      const at = from + (this.pointer / this.wide) * (to - from);
      painter.line(this.pointer, 0, this.pointer, this.tall, this.colours.quiet, { dash: [1, 3] });
      const text = `${duration(at / 1000)} · ${CLOCK.format(new Date(this.run.origin + at))}`;
      const width = head.measure(text, { size: 11 }) + 8;
      const left = Math.min(Math.max(0, this.pointer - width / 2), this.wide - width);
      head.rect(left, 0, width, AXIS, this.colours.raised);
      head.text(left + 4, AXIS / 2 - 1, text, this.colours.text, { size: 11 });
    }
    this.paintMap(now);
    this.name(first, last);
    this.drawn += 1;
  }

  paintMap(now) {
    // The whole run costs a walk over all steps: not for every frame of a long one.
    if (this.run.steps.length > 1000 && now - (this.mapped ?? 0) < 250) {
      this.mapTimer ??= setTimeout(() => {
        this.mapTimer = null;
        this.paintMap(Date.now());
      }, 260);
      return;
    }
    this.mapped = now;
    const painter = (this.mapPainter ??= new CanvasPainter(this.map));
    painter.begin(this.wide, 36);
    this.map.style.width = `${this.wide}px`;
    minimap(painter, this.colours, this.run, { width: this.wide, height: 36, view: this.view, now });
  }

  /** Names of the rows that are seen, and a few around, as elements that are used again and again. */
  name(first, last) {
    const from = Math.max(0, first - SPARE);
    const to = Math.min(this.rows.length, last + SPARE);
    const count = to - from;
    if (!this.pool || this.pool.length !== count) {
      this.pool = Array.from({ length: count }, () => {
        const text = h("span", { class: "name" });
        const mark = h("span", { class: "mark", "aria-hidden": "true" });
        const element = h("div", { role: "option", class: "step" }, mark, text);
        return { element, text, mark, step: null, shown: "" };
      });
      replace(
        this.list,
        this.pool.map((one) => one.element),
      );
    }
    for (let i = 0; i < count; i += 1) {
      const step = this.rows[from + i];
      const isSelected = step === this.selected;
      const shown = `${from + i} ${step.id} ${step.status} ${isSelected} ${step.isCritical} ${step.attempts.length}`;
      const one = this.pool[i];
      if (one.shown === shown) continue;
      one.shown = shown;
      one.step = step;
      const { element } = one;
      element.id = `step-${from + i}`;
      element.style.transform = `translateY(${(from + i) * ROW}px)`;
      element.className = `step ${step.status}${isSelected ? " selected" : ""}${step.isCritical ? " critical" : ""}`;
      element.setAttribute("aria-selected", String(isSelected));
      element.setAttribute("aria-posinset", String(from + i + 1));
      element.setAttribute("aria-setsize", String(this.rows.length));
      element.setAttribute("aria-label", this.told(step));
      say(one.text, step.name);
      element.title = step.name;
      say(one.mark, STATUSES[step.status] ?? "·");
      element.style.setProperty("--indent", String(Math.min(step.depth, 8) * (this.options.order === "depth" ? 8 : 0)));
    }
    const at = this.selected ? this.place.get(this.selected) : undefined;
    if (at === undefined) this.list.removeAttribute("aria-activedescendant");
    else this.list.setAttribute("aria-activedescendant", `step-${at}`);
  }

  told(step) {
    const parts = [step.name, step.status];
    if (step.start !== null) {
      parts.push(duration(((this.run.reach(step, Date.now()) ?? step.start) - step.start) / 1000));
    }
    if (step.attempts.length > 1) parts.push(`${step.attempts.length} attempts`);
    if (step.isCritical) parts.push("on the critical path");
    return parts.join(", ");
  }

  click(event) {
    const one = this.pool?.find((each) => each.element.contains(event.target));
    if (one) this.select(one.step, { scroll: false });
  }

  pick(event) {
    const box = this.canvas.getBoundingClientRect();
    const step = this.rows[Math.floor((event.clientY - box.top + this.scroll.scrollTop) / ROW)];
    if (step) this.select(step, { scroll: false });
    this.list.focus({ preventScroll: true });
  }

  wheel(event) {
    const { from, to } = this.view;
    if (event.ctrlKey || event.metaKey || event.altKey) {
      event.preventDefault();
      const box = this.canvas.getBoundingClientRect();
      this.zoom(1.0015 ** event.deltaY, from + ((event.clientX - box.left) / this.wide) * (to - from));
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      const by = ((event.deltaX || event.deltaY) / this.wide) * (to - from);
      this.look(from + by, to + by);
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.selected ? (this.place.get(this.selected) ?? -1) : -1;
    const page = Math.max(1, Math.floor(this.tall / ROW) - 1);
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
      ArrowLeft: () => this.look(this.view.from - span / 8, this.view.to - span / 8),
      ArrowRight: () => this.look(this.view.from + span / 8, this.view.to + span / 8),
      "+": () => this.zoom(0.7),
      "=": () => this.zoom(0.7),
      "-": () => this.zoom(1 / 0.7),
      0: () => this.whole(),
      Enter: () => this.selected && this.show(this.selected),
      Escape: () => this.select(null),
      c: () => this.critical(at),
      C: () => this.critical(at, -1),
      f: () => this.failed(at),
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    move();
  }

  /** The next step on the critical path, from a row on, around the end. */
  critical(at, by = 1) {
    this.seek(at, by, (step) => step.isCritical);
  }

  failed(at) {
    this.seek(at, 1, (step) => ["failed", "timeout", "lost"].includes(step.status));
  }

  seek(at, by, fits) {
    const count = this.rows.length;
    for (let i = 1; i <= count; i += 1) {
      const index = (((at + by * i) % count) + count) % count;
      if (fits(this.rows[index])) return this.select(this.rows[index]);
    }
    return undefined;
  }

  recolour() {
    this.colours = palette();
    this.draw();
  }

  close() {
    this.sizes.disconnect();
    cancelAnimationFrame(this.asked);
    clearTimeout(this.arranging);
    clearTimeout(this.mapTimer);
  }
}

/** Calls `move(dx, dy, isStart, event)` while something is dragged; `click(event)` where it was only pressed. */
export function drag(element, move, click) {
  element.addEventListener("pointerdown", (down) => {
    if (down.button !== 0) return;
    let isDragged = false;
    element.setPointerCapture(down.pointerId);
    if (!click) move(0, 0, true, down);
    const moved = (event) => {
      const [dx, dy] = [event.clientX - down.clientX, event.clientY - down.clientY];
      if (!isDragged && Math.abs(dx) + Math.abs(dy) < 4) return;
      move(dx, dy, !isDragged, event);
      isDragged = true;
    };
    const up = (event) => {
      element.removeEventListener("pointermove", moved);
      element.removeEventListener("pointerup", up);
      element.removeEventListener("pointercancel", up);
      if (!isDragged && event.type === "pointerup") click?.(event);
    };
    element.addEventListener("pointermove", moved);
    element.addEventListener("pointerup", up);
    element.addEventListener("pointercancel", up);
  });
}
