// What is expected of a workflow, whether it holds, and changing it.

import { get, put, remove } from "../api.js";
import { askForm, confirmed, field } from "../dialog.js";
import { h, replace } from "../dom.js";
import { duration } from "../format.js";
import { time } from "../times.js";

const PLACES = {
  default: "the file's defaults",
  code: "its code",
  definition: "its definition",
  file: "the file of expectations",
  api: "here",
};
const SEVERITIES = ["", "info", "warning", "critical"];

/** The block of a workflow's view. `app` announces and shows errors. */
export class ExpectationBlock {
  constructor(app, workflow) {
    this.app = app;
    this.path = `api/expectations/${encodeURIComponent(workflow)}`;
    this.element = h("section", { class: "expected", "aria-label": "What is expected" });
  }

  async read() {
    try {
      this.show(await get(this.path));
    } catch (problem) {
      replace(this.element, h("h2", {}, "Expected"), h("p", { class: "error-text" }, problem.message));
    }
  }

  show(info) {
    const { expected, said } = info;
    const places = Object.keys(said).filter((place) => Object.keys(said[place]).length);
    const facts = [
      ["Now", state(info)],
      ["Schedule", info.schedule_text ?? expected.schedule ?? "none"],
      info.expected_start_at ? ["Due", time(info.expected_start_at, "both")] : null,
      ["May start late by", duration(expected.grace_seconds)],
      ["May take", expected.deadline_seconds === null ? "what is usual" : duration(expected.deadline_seconds)],
      ...Object.entries(expected.steps).map(([name, seconds]) => [`${name} may take`, duration(seconds)]),
      ["Severity", expected.severity],
      ["Said by", places.map((place) => PLACES[place] ?? place).join(", ") || "nobody: these are the defaults"],
    ].filter(Boolean);
    replace(
      this.element,
      h(
        "div",
        { class: "title" },
        h("h2", {}, "Expected"),
        h(
          "span",
          { class: "actions" },
          h("button", { type: "button", on: { click: () => this.change(said.api ?? {}) } }, "Change"),
          "api" in said ? h("button", { type: "button", on: { click: () => this.takeBack() } }, "Take back") : null,
        ),
      ),
      h(
        "dl",
        { class: "facts" },
        facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
      ),
      info.findings.map((finding) => h("p", { class: "error-text" }, finding.text)),
    );
  }

  /** Ask for what is said here. What is left empty is left to the other places. */
  async change(mine) {
    const text = (value, placeholder) => h("input", { type: "text", value: value ?? "", placeholder, maxlength: 200 });
    const seconds = (value) => (value === undefined || value === null ? "" : `${value}s`);
    const schedule = text(mine.schedule, "0 3 * * *");
    const zone = text(mine.timezone, "Europe/Berlin");
    const grace = text(seconds(mine.grace_seconds), "10m");
    const deadline = text(seconds(mine.deadline_seconds), "1h");
    const steps = h("textarea", { rows: 3, placeholder: "load = 20m", maxlength: 20000 });
    steps.value = Object.entries(mine.steps ?? {})
      .map(([name, step]) => `${name} = ${seconds(step.deadline_seconds)}`)
      .join("\n");
    const severity = h(
      "select",
      {},
      SEVERITIES.map((word) =>
        h("option", { value: word, selected: word === (mine.severity ?? "") }, word || "as it is"),
      ),
    );
    const isPaused = h("input", { type: "checkbox", checked: mine.is_paused === true });
    const save = () => {
      const document = documentOf(mine);
      const values = {
        schedule: schedule.value.trim(),
        timezone: zone.value.trim(),
        grace: grace.value.trim(),
        deadline: deadline.value.trim(),
        steps: steps.value.trim() ? stepsOf(steps.value) : "",
        severity: severity.value,
        is_paused: isPaused.checked ? true : "",
      };
      for (const [name, value] of Object.entries(values)) {
        if (value === "") delete document[name];
        else document[name] = value;
      }
      return put(this.path, document);
    };
    const isDone = await askForm(
      "What is expected",
      "What is said here is stronger than code, definition and file. What is left empty is left to them.",
      "Save",
      [
        field("Schedule", schedule, "cron, @daily, every 15m, learned, or none"),
        field("Time zone", zone),
        field("May start late by", grace),
        field("May take", deadline),
        field("Deadlines of steps", steps, "a step and its time a line, such as load = 20m"),
        field("Severity", severity),
        field("Nothing for now", isPaused),
      ],
      save,
    );
    if (isDone) await this.changed("What is expected has changed.");
  }

  async takeBack() {
    const text = "What its code, its definition and the file say counts again.";
    if (!(await confirmed("Take back what is said here?", text, "Take back"))) return;
    try {
      await remove(this.path);
    } catch (problem) {
      this.app.showError(problem);
    }
    await this.changed("What was said here counts no more.");
  }

  async changed(text) {
    this.app.announce(text);
    await this.read();
  }
}

function state(info) {
  if (info.state === "ok") return h("span", { class: "status completed" }, "✔ as expected");
  if (info.state === "paused") return "nothing is expected for now";
  return h("span", { class: "status failed" }, `✘ ${info.state.replace("_", " ")}`);
}

/** The deadlines of steps, a line each: `load = 20m`. */
function stepsOf(text) {
  const lines = text.split("\n").filter((line) => line.trim());
  const entries = lines.map((line) => {
    const at = line.lastIndexOf("=");
    const [name, deadline] = at < 0 ? [line, ""] : [line.slice(0, at), line.slice(at + 1)];
    return [name.trim(), { deadline: deadline.trim() }];
  });
  return Object.fromEntries(entries);
}

/** What was said, as it is written: durations have other names there. */
function documentOf(said) {
  const document = { ...said };
  for (const name of ["grace", "deadline"]) {
    if (`${name}_seconds` in document) document[name] = document[`${name}_seconds`];
    delete document[`${name}_seconds`];
  }
  if (said.steps)
    document.steps = Object.fromEntries(
      Object.entries(said.steps).map(([name, step]) => [name, { deadline: step.deadline_seconds }]),
    );
  return document;
}
