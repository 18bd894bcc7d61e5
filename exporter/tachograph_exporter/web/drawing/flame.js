// A flame graph: how often which functions were seen, each above the one that called it. Made of elements, so that it
// can be read and walked by keyboard: it is a tree.

import { h, replace } from "../dom.js";
import { percent } from "../format.js";

const MAX_DEPTH = 60;
const MIN_SHARE = 0.004;
const MAX_NODES = 1500;
const ROW_REM = 1.25;

/** A tree of frames from stacks ({ frames, count }): { name, count, children }, the most frequent child first. */
export function frameTree(stacks) {
  const root = { name: "all", count: 0, children: new Map() };
  for (const { frames, count } of stacks) {
    root.count += count;
    let node = root;
    for (const name of frames.slice(0, MAX_DEPTH)) {
      let child = node.children.get(name);
      if (!child) node.children.set(name, (child = { name, count: 0, children: new Map(), parent: node }));
      child.count += count;
      node = child;
    }
  }
  return sorted(root);
}

function sorted(node) {
  node.children = [...node.children.values()].sort((a, b) => b.count - a.count).map(sorted);
  return node;
}

/** The function of a frame: without its module's path, its file and line. */
export function shortName(frame) {
  const name = frame.replace(/ \([^()]*:\d+\)$/, "");
  return name.includes("(") || name.startsWith("[") ? name : name.split(".").slice(-2).join(".");
}

export class Flame {
  /** `seconds`: what one count stands for; 0: counts are shown. */
  constructor(stacks, { label, seconds = 0 }) {
    this.root = frameTree(stacks);
    this.seconds = seconds;
    this.shown = this.root;
    this.graph = h("div", {
      class: "flame",
      role: "tree",
      "aria-label": label,
      on: { keydown: (event) => this.walk(event) },
    });
    this.about = h("p", { class: "quiet flame-about", role: "status" });
    this.element = h("div", {}, this.graph, this.about);
    this.draw();
  }

  /** Draw the frames inside the shown one; the others are too small, or were left out. */
  draw() {
    this.boxes = new Map();
    const boxes = [];
    let depths = 0;
    const add = (node, left, depth) => {
      const share = node.count / this.shown.count;
      if (share < MIN_SHARE || boxes.length >= MAX_NODES) return;
      depths = Math.max(depths, depth + 1);
      const box = this.box(node, left, share, depth);
      this.boxes.set(node, box);
      boxes.push(box);
      let at = left;
      for (const child of node.children) {
        add(child, at, depth + 1);
        at += child.count / this.shown.count;
      }
    };
    add(this.shown, 0, 0);
    this.graph.style.setProperty("height", `${depths * ROW_REM}rem`);
    replace(this.graph, boxes);
    this.focus(this.shown, { isQuiet: true });
  }

  box(node, left, share, depth) {
    const text = node === this.root ? "all" : shortName(node.name);
    return h(
      "div",
      {
        role: "treeitem",
        class: `frame hue-${hue(node.name)}${node.name.endsWith("(native)") ? " native" : ""}`,
        tabindex: -1,
        "aria-level": depth + 1,
        "aria-selected": "false",
        "aria-label": this.describe(node),
        "aria-expanded": node.children.length ? "true" : null,
        title: this.describe(node),
        style: { left: `${100 * left}%`, width: `${100 * share}%`, top: `${depth * ROW_REM}rem` },
        on: {
          click: () => (node === this.shown ? this.show(node.parent ?? this.root) : this.show(node)),
          focus: () => this.tell(node),
          mouseenter: () => this.tell(node),
        },
      },
      text,
    );
  }

  describe(node) {
    const share = percent((100 * node.count) / this.root.count, 0);
    const long = this.seconds ? `, ${(node.count * this.seconds).toFixed(1)} s` : "";
    return `${node.name}: ${share}${long}`;
  }

  tell(node) {
    this.about.textContent = this.describe(node);
  }

  /** Show a frame at the full width. */
  show(node) {
    this.shown = node;
    this.draw();
    this.boxes.get(node)?.focus({ preventScroll: true });
  }

  focus(node, { isQuiet = false } = {}) {
    const box = this.boxes.get(node);
    if (!box) return;
    for (const other of this.boxes.values()) {
      other.tabIndex = other === box ? 0 : -1;
      other.setAttribute("aria-selected", String(other === box));
    }
    this.current = node;
    this.tell(node);
    if (!isQuiet) box.focus({ preventScroll: true });
  }

  /** Down goes to what the frame calls most, up to its caller, left and right to what its caller calls besides. */
  walk(event) {
    const node = this.current;
    const beside = node.parent?.children ?? [node];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.show(node === this.shown ? (node.parent ?? this.root) : node);
      return;
    }
    if (event.key === "Escape" && this.shown !== this.root) {
      event.stopPropagation();
      this.show(this.root);
      return;
    }
    const targets = {
      ArrowDown: node.children[0],
      ArrowUp: node === this.shown ? null : node.parent,
      ArrowLeft: beside[beside.indexOf(node) - 1],
      ArrowRight: beside[beside.indexOf(node) + 1],
      Home: this.shown,
    };
    if (!(event.key in targets)) return;
    const next = targets[event.key];
    event.preventDefault();
    event.stopPropagation();
    if (next) this.focus(next);
  }
}

/** One of a few hues, the same for all frames of a module. */
function hue(name) {
  let sum = 0;
  const module =
    name
      .replace(/ \(.*$/, "")
      .split(".")
      .slice(0, -1)
      .join(".") || name;
  for (const character of module) sum = (sum * 31 + character.codePointAt(0)) % 6;
  return sum;
}
