// Failures by cause: how often, since when, where, what is new, and what somebody muted or resolved.

import { get, post } from "../api.js";
import { labelledSelect } from "../controls.js";
import { h, replace, setText, svg } from "../dom.js";
import { shortened } from "../format.js";
import { time } from "../times.js";

const WINDOWS = {
  "24h": "1 day",
  "3d": "3 days",
  "7d": "7 days",
  "14d": "14 days",
  "30d": "30 days",
  "90d": "90 days",
};
const STATES = {
  "": "open",
  "open,regressed,muted": "open and muted",
  muted: "muted",
  resolved: "resolved",
  "open,regressed,muted,resolved": "all",
};
const SORTS = {
  "-last_seen": "latest",
  "-failures": "most failures",
  "-first_seen": "newest",
  "-executions": "most runs",
};
const PAGE_SIZE = 50;
const MAX_NAME = 40;
const TREND_HEIGHT = 22;
const BAR = 5;

/** Groups of failures, with what can be done about them. */
export class FailuresView {
  constructor(app, parameters) {
    this.app = app;
    this.parameters = parameters;
    this.items = [];
    this.element = h("section", { class: "failures" }, h("h1", { tabindex: -1 }, "Failures"));
  }

  value(name, choices, standard) {
    const value = this.parameters.get(name) ?? standard;
    return value in choices ? value : standard;
  }

  async open() {
    document.title = "Failures · Tachograph";
    this.summary = h("p", { class: "quiet", "aria-live": "polite" }, " ");
    this.note = h("p", { class: "quiet", hidden: true }, "Failures of before the upgrade are still being grouped.");
    this.list = h("ul", { class: "plain causes" });
    this.more = h("button", { type: "button", hidden: true, on: { click: () => this.read(true) } }, "Load more");
    const choice = (label, name, choices, standard) =>
      labelledSelect(label, choices, this.value(name, choices, standard), (value) => {
        const kept = value === standard ? "" : value;
        this.app.setParameters({ [name]: kept }, { isStep: true });
        if (kept) this.parameters.set(name, kept);
        else this.parameters.delete(name);
        this.read();
      });
    replace(
      this.element,
      h(
        "div",
        { class: "title" },
        h("h1", { tabindex: -1 }, "Failures"),
        this.summary,
        choice("Look back", "since", WINDOWS, "14d"),
        choice("Show", "state", STATES, ""),
        choice("Order", "sort", SORTS, "-last_seen"),
      ),
      this.note,
      this.list,
      this.more,
    );
    await this.read();
  }

  async read(isMore = false) {
    const page = await get("api/failures", {
      from: this.value("since", WINDOWS, "14d"),
      state: this.value("state", STATES, ""),
      sort: this.value("sort", SORTS, "-last_seen"),
      workflow: this.parameters.get("workflow"),
      skip: isMore ? this.items.length : 0,
      limit: PAGE_SIZE,
    });
    this.items = isMore ? [...this.items, ...page.items] : page.items;
    this.more.hidden = this.items.length >= page.total;
    this.note.hidden = page.is_complete;
    setText(this.summary, `${page.total.toLocaleString("en")} ${page.total === 1 ? "cause" : "causes"}`);
    replace(
      this.list,
      this.items.length
        ? this.items.map((item) => this.row(item))
        : h("li", { class: "calm" }, "Nothing failed, or what did is muted or resolved."),
    );
  }

  row(item) {
    const row = h("li", { class: `block ${item.state === "muted" || item.state === "resolved" ? "" : "failed"}` });
    const change = (changed) => {
      this.items = this.items.map((other) => (other.id === changed.id ? changed : other));
      const next = this.row(changed);
      row.replaceWith(next);
      next.querySelector("button")?.focus();
    };
    replace(
      row,
      h(
        "div",
        { class: "causehead" },
        h("h2", {}, h("a", { href: `#/failures/${item.id}`, class: "error-text" }, causeText(item))),
        trend(item),
      ),
      h(
        "div",
        { class: "of" },
        badges(item),
        h("b", {}, `${item.counts.failures.toLocaleString("en")}×`),
        h("span", { class: "quiet" }, ` in ${runs(item.counts.executions)} that failed, last `),
        time(item.last_seen_at, "ago"),
        h("span", { class: "quiet" }, ", first "),
        time(item.first_seen_at, "ago"),
      ),
      h("div", { class: "of" }, item.places.map(placeText), item.location ? code(item.location) : null),
      h("div", { class: "of" }, said(item), actions(this.app, item, change)),
    );
    return row;
  }

  search() {
    return false;
  }

  first() {
    this.list.querySelector("a")?.focus();
  }

  recolour() {}

  close() {}
}

/** The type and message of a group. */
export function causeText(item) {
  const kind = item.error_type.split(".").at(-1);
  return [kind, item.message].filter(Boolean).join(": ") || "no reason is given";
}

export function runs(count) {
  return `${count.toLocaleString("en")} ${count === 1 ? "run" : "runs"}`;
}

function code(location) {
  return h("span", { class: "quiet" }, " at ", h("code", {}, shortened(location, 80)));
}

function placeText(place, index) {
  const step = place.step_name ? ` in ${shortened(place.step_name, MAX_NAME)}` : "";
  return [
    index ? ", " : "",
    h(
      "a",
      { href: `#/workflows/${encodeURIComponent(place.workflow_id)}`, title: place.workflow_name },
      shortened(place.workflow_name, MAX_NAME),
    ),
    `${step} ${place.failures.toLocaleString("en")}×`,
  ];
}

/** Whether a group is new, has come again, or is muted or resolved. */
export function badges(item) {
  const texts = [];
  if (item.state === "regressed") texts.push(["bad", "regressed"]);
  if (item.new_since_version) texts.push(["bad", `new since version ${shortened(item.new_since_version, MAX_NAME)}`]);
  else if (item.is_new) texts.push(["bad", "new"]);
  if (item.state === "muted") texts.push(["", "muted"]);
  if (item.state === "resolved") texts.push(["good", "resolved"]);
  return texts.map(([kind, text]) => [h("span", { class: `badge ${kind}` }, text), " "]);
}

/** Who muted or resolved a group, when and why. */
export function said(item) {
  if (!item.state_changed_at) return null;
  const what = item.state === "regressed" ? "resolved" : item.state === "open" ? "reopened" : item.state;
  return h(
    "span",
    { class: "quiet" },
    `${what}${item.state_changed_by ? ` by ${item.state_changed_by}` : ""} `,
    time(item.state_changed_at, "ago"),
    item.note ? `: ${item.note}` : "",
    " ",
  );
}

const ACTIONS = {
  open: [
    ["resolve", "Resolve", "It is mended: listed again if it fails again"],
    ["mute", "Mute", "Leave it out of lists, whether or not it fails again"],
  ],
  regressed: [
    ["resolve", "Resolve", "It is mended: listed again if it fails again"],
    ["mute", "Mute", "Leave it out of lists, whether or not it fails again"],
  ],
  muted: [["unmute", "Unmute", "List it again"]],
  resolved: [["reopen", "Reopen", "It is not mended"]],
};

/** The buttons of a group. `change(item)` is called with what it is afterwards. */
export function actions(app, item, change) {
  return ACTIONS[item.state].map(([action, label, title]) => [
    h(
      "button",
      {
        type: "button",
        title,
        on: {
          click: async (event) => {
            event.target.disabled = true;
            try {
              const { group } = await post(`api/failures/${encodeURIComponent(item.id)}`, { action });
              app.announce(`${causeText(item)}: ${group.state}`);
              change(group);
            } catch (problem) {
              event.target.disabled = false;
              app.showError(problem);
            }
          },
        },
      },
      label,
    ),
    " ",
  ]);
}

/** How often a group happened in equal parts of the window, a bar each. */
export function trend({ trend: counts }) {
  const most = Math.max(1, ...counts);
  const width = counts.length * BAR;
  return svg(
    "svg",
    {
      class: "causetrend",
      width,
      height: TREND_HEIGHT,
      viewBox: `0 0 ${width} ${TREND_HEIGHT}`,
      role: "img",
      "aria-label": `Failures over time, at most ${most.toLocaleString("en")} at once`,
    },
    counts.map((count, i) => {
      const height = count ? Math.max(3, (TREND_HEIGHT * count) / most) : 1;
      return svg("rect", {
        class: count ? "some" : "none",
        x: i * BAR,
        y: TREND_HEIGHT - height,
        width: BAR - 1,
        height,
      });
    }),
  );
}
