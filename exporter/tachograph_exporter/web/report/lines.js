// The log lines of the run, to be searched.

import { debounce } from "../debounce.js";
import { h, replace } from "../dom.js";
import { duration, parseTime } from "../format.js";

/** The section with the lines; null without any. `select(step id)` shows a step. */
export function linesOf({ timeline, lines, are_older_lines: areOlder }, select) {
  if (!lines.length) return null;
  const origin = parseTime(timeline.started_at) ?? parseTime(lines[0].at);
  const rows = lines.map((line) => rowOf(line, origin, select));
  const texts = lines.map((line) => `${line.level} ${line.step_name ?? ""} ${textOf(line)}`.toLowerCase());
  const list = h("ol", { class: "log" }, rows);
  const count = h("span", { class: "quiet", role: "status" }, `${lines.length} lines`);
  const search = h("input", {
    type: "search",
    placeholder: "text, level or step",
    "aria-label": "Search the log",
    on: {
      input: debounce(() => {
        const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
        const shown = rows.filter((_, index) => words.every((word) => texts[index].includes(word)));
        replace(list, shown);
        replace(count, `${shown.length} of ${lines.length} lines`);
      }, 150),
    },
  });
  return h(
    "section",
    { class: "lines", "aria-label": "Log" },
    h("h2", {}, "Log"),
    h("p", { class: "toolbar" }, search, count),
    areOlder ? h("p", { class: "omitted" }, "Older lines are not in the report.") : null,
    list,
  );
}

function textOf(line) {
  return line.message || (line.error_type ? `${line.error_type}: ${line.error_message}` : line.event_name);
}

function rowOf(line, origin, select) {
  const step = line.step_id
    ? h("button", { type: "button", class: "link", on: { click: () => select(line.step_id) } }, line.step_name)
    : null;
  return h(
    "li",
    { class: line.level },
    h("span", { class: "quiet" }, duration((parseTime(line.at) - origin) / 1000)),
    ` ${line.level} `,
    step,
    " ",
    textOf(line),
    line.error_stack ? h("details", {}, h("summary", {}, "Stack"), h("pre", { tabindex: 0 }, line.error_stack)) : null,
  );
}
