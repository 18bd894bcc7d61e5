// Times as users read them: in the browser's zone or in UTC, with how long ago they are.

import { h, setText } from "./dom.js";
import { keep, recall } from "./storage.js";

const UTC_KEY = "tachograph.utc";
const DAY_SECONDS = 86_400;

let isUtc = recall(UTC_KEY) === "1";
let formats = {};

function format(name, options) {
  formats[name] ??= new Intl.DateTimeFormat(undefined, { ...options, ...(isUtc ? { timeZone: "UTC" } : {}) });
  return formats[name];
}

const clockFormat = () => format("clock", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dayFormat = () => format("day", { month: "short", day: "numeric" });
const dateFormat = () => format("date", { year: "numeric", month: "2-digit", day: "2-digit" });

/** Whether times are shown in UTC instead of the browser's zone. */
export function showsUtc() {
  return isUtc;
}

/** Switch between the browser's zone and UTC; every time on the page follows. */
export function toggleZone() {
  isUtc = !isUtc;
  keep(UTC_KEY, isUtc ? "1" : "0");
  formats = {};
  refreshTimes();
}

/** The zone of the times on the page: `UTC`, or the browser's (`Europe/Berlin`, `UTC+1`). */
export function zone(at = new Date()) {
  if (isUtc) return "UTC";
  const minutes = -at.getTimezoneOffset();
  if (!minutes) return "UTC+0";
  const hours = Math.trunc(Math.abs(minutes) / 60);
  const rest = Math.abs(minutes) % 60;
  return `UTC${minutes < 0 ? "−" : "+"}${hours}${rest ? `:${String(rest).padStart(2, "0")}` : ""}`;
}

/** The time of day of a `Date`, with milliseconds if asked for. */
export function clock(at, { milliseconds = false } = {}) {
  const text = clockFormat().format(at);
  return milliseconds ? `${text}.${String(at.getMilliseconds()).padStart(3, "0")}` : text;
}

/** Hours and minutes of a `Date`. */
export function shortClock(at) {
  return clock(at).slice(0, 5);
}

/** The day of a `Date`: `Nov 30`. */
export function shortDay(at) {
  return dayFormat().format(at);
}

/** Unix ms of a time of day, so many days after the day of `now`, in the zone of the page. */
export function timeOfDay(days, hours, now = Date.now()) {
  const at = new Date(now);
  if (isUtc) return Date.UTC(at.getUTCFullYear(), at.getUTCMonth(), at.getUTCDate() + days, hours);
  return new Date(at.getFullYear(), at.getMonth(), at.getDate() + days, hours).getTime();
}

/** Begin and end of the days (unix ms) that a range of time has a part of. */
export function midnights(from, to) {
  const days = [];
  for (let day = 0; day < 400; day += 1) {
    const begin = timeOfDay(day, 0, from);
    if (begin > to) break;
    days.push([begin, timeOfDay(day + 1, 0, from)]);
  }
  return days;
}

/** A time (unix ms) as the value of an input of type `datetime-local`. */
export function inputValue(ms) {
  const shift = isUtc ? 0 : new Date(ms).getTimezoneOffset() * 60_000;
  return new Date(ms - shift).toISOString().slice(0, 16);
}

/** Unix ms of the value of an input of type `datetime-local`; null if it has none. */
export function inputTime(value) {
  const at = value ? Date.parse(isUtc ? `${value}Z` : value) : NaN;
  return Number.isNaN(at) ? null : at;
}

/** How long ago a time is: `just now`, `42 s ago`, `5 min ago`, `3 h ago`, `2 d ago`; or `in 5 min`. */
export function ago(milliseconds, now = Date.now()) {
  const seconds = Math.round((now - milliseconds) / 1000);
  const size = Math.abs(seconds);
  if (size < 5) return "just now";
  const text =
    size < 60
      ? `${size} s`
      : size < 3600
        ? `${Math.floor(size / 60)} min`
        : size < 2 * DAY_SECONDS
          ? `${Math.floor(size / 3600)} h`
          : `${Math.floor(size / DAY_SECONDS)} d`;
  return seconds > 0 ? `${text} ago` : `in ${text}`;
}

function label(at) {
  const isToday = dateFormat().format(at) === dateFormat().format(new Date());
  return isToday ? clock(at) : `${dayFormat().format(at)}, ${clock(at)}`;
}

/** The time and how long ago it is; small screens show only the latter. */
function fillBoth(element, text, past) {
  if (!element.children.length) element.append(h("span", { class: "at" }), h("span", { class: "ago" }));
  const [first, second] = element.children;
  setText(first, `${text} · `);
  setText(second, past);
}

function fill(element) {
  const text = element.getAttribute("datetime");
  const at = new Date(text);
  if (element.dataset.form === "ago") setText(element, ago(at.getTime()));
  else if (element.dataset.form === "both") fillBoth(element, label(at), ago(at.getTime()));
  else setText(element, label(at));
  element.title = `${dateFormat().format(at)} ${clock(at)} ${zone(at)}\n${text.replace("T", " ").replace("Z", " UTC")}`;
  return element;
}

/** A time element with the full times as a tooltip. `form`: `clock`, `ago`, or `both`. */
export function time(text, form = "clock") {
  return text ? fill(h("time", { datetime: text, data: { form } })) : h("span", {}, "–");
}

/** Bring all times on the page up to date: how long ago they are, and their zone. */
export function refreshTimes() {
  for (const element of document.querySelectorAll("time[data-form]")) fill(element);
}
