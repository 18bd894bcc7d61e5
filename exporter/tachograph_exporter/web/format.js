// Times, durations, statuses and amounts as users read them.

import { h } from "./dom.js";

export const STATUS_SYMBOLS = {
  pending: "·",
  running: "▶",
  retrying: "↻",
  completed: "✔",
  failed: "✘",
  timeout: "◷",
  cancelled: "■",
  lost: "?",
  skipped: "–",
};
export const EXECUTION_STATUSES = ["pending", "running", "completed", "failed", "timeout", "cancelled", "lost"];
export const OPEN_STATUSES = new Set(["pending", "running", "retrying"]);

/** Unix milliseconds of an RFC 3339 time, to the microsecond; null for null. */
export function parseTime(text) {
  if (!text) return null;
  const dot = text.indexOf(".");
  if (dot < 0) return Date.parse(text);
  const end = text.indexOf("Z", dot);
  return Date.parse(`${text.slice(0, dot)}Z`) + Number(`0.${text.slice(dot + 1, end < 0 ? undefined : end)}`) * 1000;
}

/** A duration, given in seconds: `820 µs`, `12.3 ms`, `4.56 s`, `3 m 20 s`, `2 h 05 m`, `3 d 04 h`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds < 0) return `-${duration(-seconds)}`;
  // What rounds up to the next unit is shown in it.
  if (seconds < 0.0009995) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 0.9995) return `${significant(seconds * 1000)} ms`;
  if (seconds < 59.95) return `${significant(seconds)} s`;
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} m ${padded(whole % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${padded(minutes % 60)} m`;
  return `${Math.floor(hours / 24)} d ${padded(hours % 24)} h`;
}

function significant(value) {
  return String(Number(value.toPrecision(3)));
}

function padded(number) {
  return String(number).padStart(2, "0");
}

/** An id shortened to its end; ids start with a timestamp, so those of runs close in time start alike. */
export function shortId(id) {
  return `…${id.slice(-6)}`;
}

/** A percentage. */
export function percent(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(value === 100 || value === 0 ? 0 : digits);
  return `${Number(text) === 0 ? text.replace("-", "") : text} %`;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** A size in bytes: `812 B`, `50 MiB`, `1.25 GiB`. */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  let value = bytes;
  let unit = 0;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 1000 ? Math.round(value) : significant(value)} ${UNITS[unit]}`;
}

/** US dollars. */
export function dollars(value) {
  return value ? `$${value >= 1 ? value.toFixed(2) : Number(value.toPrecision(2))}` : "–";
}

/** A ratio to what is usual: `×3.27`. */
export function times(ratio) {
  return `×${ratio >= 1000 ? Math.round(ratio).toLocaleString("en") : significant(ratio)}`;
}

/** A text cut in the middle to at most `length` characters: ends of long names tell them apart, too. */
export function shortened(text, length) {
  if (text.length <= length) return text;
  const half = (length - 1) >> 1;
  return `${text.slice(0, length - 1 - half)}…${text.slice(-half)}`;
}

const COUNTED = [
  ["completed_step_count", "completed"],
  ["failed_step_count", "failed"],
  ["skipped_step_count", "skipped"],
];

/** How many steps of a run ended how: `4 ✔ 1 ✘ 8 –`, and for an open run of how many. */
export function stepCounts(item) {
  const isOpen = OPEN_STATUSES.has(item.status);
  const counts = COUNTED.map(([field, word]) => [item[field], word]).filter(([count]) => count);
  const ended = counts.reduce((sum, [count]) => sum + count, 0);
  const rest = Math.max(0, item.step_count - ended);
  if (!ended && !rest) return h("span", {}, "–");
  if (!isOpen && rest) counts.push([rest, "not completed"]);
  const words = counts.map(([count, word]) => `${count} ${word}`).join(", ") || "none ended";
  const of = isOpen && item.step_count ? ` of ${item.step_count}` : "";
  return h(
    "span",
    { class: "counts", role: "img", "aria-label": `${words}${of}`, title: `${words}${of}` },
    counts.map(([count, word]) =>
      h("span", { class: `count ${word}` }, `${count}\u202f${STATUS_SYMBOLS[word] ?? "·"} `),
    ),
    isOpen ? h("span", { class: "quiet" }, ended ? of : `0${of}`) : null,
  );
}

/** A status element: symbol, word and colour. */
export function status(word) {
  return h(
    "span",
    { class: `status ${word}` },
    h("span", { "aria-hidden": "true" }, STATUS_SYMBOLS[word] ?? "·"),
    ` ${word}`,
  );
}
