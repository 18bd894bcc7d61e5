// The lines of the selected step: the last ones, by level and text, and a link to where all of them are.

import { get } from "../api.js";
import { labelledSelect } from "../controls.js";
import { debounce } from "../debounce.js";
import { h, replace } from "../dom.js";
import { duration, parseTime } from "../format.js";
import { now } from "../now.js";

/** So many lines are shown, the newest: as many as are kept of an attempt. */
const MAX_LINES = 200;
const LEVELS = { "": "all", debug: "debug", info: "info", warn: "warnings", error: "errors" };
/** A link to the logs of a step begins and ends this long before and after it. */
const MARGIN_MS = 60_000;

/** Shows the lines of one step after the other. `path` is the run's; `showError(problem)`. */
export class StepLog {
  constructor(path, { logsUrl, showError }) {
    this.path = path;
    this.logsUrl = logsUrl;
    this.showError = showError;
    this.step = null;
    this.level = "";
    this.readSoon = debounce(() => this.read(), 200);
    this.text = h("input", {
      type: "search",
      placeholder: "text",
      "aria-label": "Filter lines by text",
      on: { input: () => this.readSoon() },
    });
    const level = labelledSelect("Level", LEVELS, "", (value) => {
      this.level = value;
      this.read();
    });
    this.link = h("span", {});
    this.filters = h("div", { class: "toolbar" }, level, this.text, this.link);
    this.list = h("ol", { class: "log", tabindex: 0, "aria-label": "Lines" });
    this.note = h("p", { class: "quiet" });
    this.element = h(
      "section",
      { class: "steplog", hidden: true },
      h("h3", {}, "Log"),
      this.filters,
      this.note,
      this.list,
    );
  }

  get isFiltered() {
    return Boolean(this.level || this.text.value);
  }

  /** Show a step of a run, at first with the lines that its timeline has. */
  show(run, step) {
    const isSame = this.step?.id === step.id;
    this.run = run;
    this.step = step;
    this.showLink();
    if (!isSame) this.fill({ items: step.entry.logs ?? [], dropped_count: 0 });
    if (!step.isExpected) this.readSoon();
  }

  async read() {
    const { step } = this;
    if (!step || step.isExpected) return;
    const question = { step: step.id, last: MAX_LINES, level: this.level, text: this.text.value };
    try {
      const lines = await get(`${this.path}/logs`, question);
      const isStale = this.step !== step || question.level !== this.level || question.text !== this.text.value;
      if (!isStale) this.fill(lines);
    } catch (problem) {
      this.showError(problem);
    }
  }

  fill({ items, has_older: hasOlder }) {
    const isAtEnd = this.list.scrollTop + this.list.clientHeight >= this.list.scrollHeight - 8;
    const attempts = new Set(items.map((line) => line.attempt).filter(Boolean));
    this.element.hidden = !items.length && !this.isFiltered && !this.link.firstChild;
    const missing = hasOlder ? `The last ${items.length} lines.` : "";
    const nothing = items.length ? "" : this.isFiltered ? "No line is like that." : "It wrote nothing so far.";
    this.note.textContent = missing || nothing;
    this.note.hidden = !this.note.textContent;
    replace(
      this.list,
      items.map((line) => this.line(line, attempts.size > 1)),
    );
    if (isAtEnd) this.list.scrollTop = this.list.scrollHeight;
  }

  line(line, hasAttempts) {
    const message = line.message || (line.error_type ? `${line.error_type}: ${line.error_message}` : line.event_name);
    return h(
      "li",
      { class: line.level, title: line.logger || line.service || null },
      h("span", { class: "quiet" }, duration((parseTime(line.at) - this.run.origin) / 1000)),
      ` ${line.level} `,
      hasAttempts && line.attempt ? h("span", { class: "quiet" }, `attempt ${line.attempt} `) : null,
      message,
      line.error_stack
        ? h(
            "details",
            {},
            h("summary", {}, `${line.error_type}: ${line.error_message}`),
            h("pre", { tabindex: 0 }, line.error_stack),
          )
        : null,
    );
  }

  /** Where all lines are, in the store of logs that the service was told of. */
  showLink() {
    const { entry, start, end } = this.step;
    const { timeline, origin } = this.run;
    if (!this.logsUrl || start === null) {
      replace(this.link);
      return;
    }
    const values = {
      trace_id: entry.trace_id ?? timeline.trace_id,
      span_id: entry.span_id ?? "",
      execution_id: timeline.execution_id,
      from_ms: Math.floor(origin + start - MARGIN_MS),
      to_ms: Math.ceil((end === null ? now() : origin + end) + MARGIN_MS),
    };
    const url = this.logsUrl.replace(/\{(\w+)\}/g, (text, name) =>
      name in values ? encodeURIComponent(values[name]) : text,
    );
    replace(this.link, h("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, "All lines"));
  }

  close() {
    this.readSoon.cancel();
    this.step = null;
  }
}
