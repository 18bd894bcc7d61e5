// Which part of the time the night's view shows.

import { labelledSelect } from "../controls.js";
import { h } from "../dom.js";
import { inputTime, inputValue, timeOfDay } from "../times.js";

const HOUR = 3600_000;
const MAX_SPAN = 8 * 24 * HOUR;
const WINDOWS = { night: "Last night", "12h": "Last 12 h", "24h": "Last 24 h", "3d": "Last 3 days", range: "From, to" };
const HOURS = { "12h": 12, "24h": 24, "3d": 72 };

/** The window that an address names: `{name, from, to}` in unix ms; a night is from six in the evening to nine. */
export function readWindow(parameters, now = Date.now()) {
  const name = parameters.get("window");
  if (name in HOURS) return { name, from: now - HOURS[name] * HOUR, to: now };
  const [from, to] = ["from", "to"].map((key) => Date.parse(parameters.get(key) ?? ""));
  if (from < to) return { name: "range", from: Math.max(from, to - MAX_SPAN), to };
  const noon = timeOfDay(0, 12, now);
  // From noon on the night that has been is meant, up to noon; before, the one that lasts until nine or now.
  return { name: "night", from: timeOfDay(-1, 18, now), to: Math.min(Math.max(timeOfDay(0, 9, now), now), noon) };
}

/** Controls for the window. `onChange(parameters)` gets what the address is to say. */
export class NightWindow {
  constructor(onChange) {
    this.onChange = onChange;
    this.choice = labelledSelect("Time", WINDOWS, "night", (name) => this.choose(name));
    this.select = this.choice.querySelector("select");
    const input = (label) =>
      h("input", { type: "datetime-local", "aria-label": label, on: { change: () => this.setRange() } });
    this.from = input("From");
    this.to = input("To");
    this.range = h("span", { class: "range" }, this.from, " – ", this.to);
    const shift = (text, label, sign) =>
      h("button", { type: "button", "aria-label": label, title: label, on: { click: () => this.shift(sign) } }, text);
    this.element = h(
      "span",
      { class: "night-window" },
      this.choice,
      h("span", { class: "group" }, shift("‹", "Earlier", -1), shift("›", "Later", 1)),
      this.range,
    );
  }

  show(current) {
    this.window = current;
    this.select.value = current.name;
    this.range.hidden = current.name !== "range";
    this.from.value = inputValue(current.from);
    this.to.value = inputValue(current.to);
  }

  choose(name) {
    if (name === "range") this.setTo(this.window.from, this.window.to);
    else this.onChange({ window: name === "night" ? "" : name, from: "", to: "" });
  }

  setRange() {
    const [from, to] = [inputTime(this.from.value), inputTime(this.to.value)];
    if (from !== null && to !== null && from < to) this.setTo(from, to);
  }

  shift(sign) {
    const { name, from, to } = this.window;
    const by = sign * (name === "night" ? 24 * HOUR : to - from);
    this.setTo(from + by, to + by);
  }

  setTo(from, to) {
    this.onChange({ window: "", from: new Date(from).toISOString(), to: new Date(to).toISOString() });
  }
}
