// The filters of the list of runs. Their values are parameters of the address.

import { foldUnless } from "../controls.js";
import { debounce } from "../debounce.js";
import { h, replace } from "../dom.js";
import { EXECUTION_STATUSES, shortened, STATUS_SYMBOLS } from "../format.js";

const RANGES = { "": "any time", "1h": "last hour", "24h": "last day", "7d": "last week", "30d": "last month" };
const ORDERS = { "-created": "newest", "-duration": "longest", duration: "shortest" };
const MAX_NAME = 40;
const NAMES = ["q", "status", "workflow", "from", "to", "min_duration", "failure"];

/** The filter that an address's parameters say. */
export function readFilter(parameters) {
  const text = (name) => parameters.get(name) ?? "";
  return {
    workflow: text("workflow"),
    status: text("status").split(",").filter(Boolean),
    from: text("from"),
    to: text("to"),
    min_duration: text("min_duration"),
    failure: text("failure"),
    text: text("q"),
    sort: text("sort") || "-created",
  };
}

/** Whether the filter lets every run through. */
export function isAll(filter) {
  return (
    !filter.text &&
    !filter.workflow &&
    !filter.status.length &&
    !filter.from &&
    !filter.to &&
    !filter.min_duration &&
    !filter.failure
  );
}

export class RunFilters {
  /** `onChange(values, isStep)` is called with changed parameters; `isStep` when Back should undo the change. */
  constructor(filter, onChange) {
    this.filter = filter;
    this.search = h("input", {
      id: "text",
      type: "search",
      placeholder: "run id, workflow or error",
      value: filter.text,
      on: { input: debounce(() => onChange({ q: this.search.value.trim() }, false), 300) },
    });
    this.workflow = h("select", {
      id: "workflow",
      on: { change: () => onChange({ workflow: this.workflow.value }, true) },
    });
    this.showWorkflows([]);
    const range = select(
      "range",
      { ...RANGES, ...(filter.from in RANGES ? {} : { [filter.from]: `since ${filter.from}` }) },
      filter.from,
      (value) => onChange({ from: value, to: "" }, true),
    );
    const length = h("input", {
      id: "length",
      type: "text",
      placeholder: "e.g. 30s",
      size: 7,
      value: filter.min_duration,
      on: { change: () => onChange({ min_duration: length.value.trim() }, true) },
    });
    const sort = select("sort", ORDERS, filter.sort, (value) =>
      onChange({ sort: value === "-created" ? "" : value }, true),
    );
    this.chips = h(
      "fieldset",
      { class: "chips" },
      h("legend", {}, "Status"),
      EXECUTION_STATUSES.map((word) => this.chip(word, onChange)),
    );
    this.reset = h(
      "button",
      {
        type: "button",
        class: "link",
        hidden: isAll(filter),
        on: { click: () => onChange(Object.fromEntries(NAMES.map((name) => [name, ""])), true, true) },
      },
      "Clear filters",
    );
    const isFiltered = !isAll({ ...filter, text: "" }) || filter.sort !== "-created";
    this.element = h(
      "form",
      { class: "filters", role: "search", "aria-label": "Runs", on: { submit: (event) => event.preventDefault() } },
      field("text", "Search", this.search),
      foldUnless(
        "(min-width: 64rem)",
        "Filters",
        isFiltered,
        h(
          "div",
          { class: "filters" },
          this.chips,
          field("workflow", "Workflow", this.workflow),
          field("range", "Time", range),
          field("length", "At least", length),
          field("sort", "Order", sort),
          this.reset,
        ),
      ),
    );
  }

  chip(word, onChange) {
    const box = h("input", {
      type: "checkbox",
      id: `s-${word}`,
      value: word,
      checked: this.filter.status.includes(word),
      on: {
        change: () =>
          onChange(
            { status: [...this.chips.querySelectorAll("input:checked")].map((checked) => checked.value).join(",") },
            true,
          ),
      },
    });
    return h(
      "label",
      { class: `chip ${word}`, for: `s-${word}` },
      box,
      h("span", { "aria-hidden": "true" }, STATUS_SYMBOLS[word]),
      ` ${word}`,
    );
  }

  /** Fill the select of workflows with `{workflow_id, workflow_name}`. */
  showWorkflows(workflows) {
    const chosen = this.workflow.value || this.filter.workflow;
    const isChosen = (item) => item.workflow_id === chosen || item.workflow_name === chosen;
    const isUnlisted = chosen && !workflows.some(isChosen);
    replace(
      this.workflow,
      h("option", { value: "" }, "all workflows"),
      isUnlisted ? h("option", { value: chosen, selected: true }, shortened(chosen, MAX_NAME)) : null,
      workflows.map((item) =>
        h(
          "option",
          { value: item.workflow_id, selected: isChosen(item), title: item.workflow_name },
          shortened(item.workflow_name, MAX_NAME),
        ),
      ),
    );
  }

  /** Follow a changed filter. */
  update(filter) {
    this.filter = filter;
    this.reset.hidden = isAll(filter);
  }
}

function field(id, label, element) {
  return h("label", { class: "choice", for: id }, h("span", { class: "quiet" }, label), element);
}

function select(id, options, value, onChange) {
  const element = h(
    "select",
    { id, on: { change: () => onChange(element.value) } },
    Object.entries(options).map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );
  return element;
}
