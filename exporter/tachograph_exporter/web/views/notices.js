// What did not hold and who was told, and what nobody is to be told of.

import { get, remove } from "../api.js";
import { confirmed } from "../dialog.js";
import { h, replace, setText } from "../dom.js";
import { EventStream } from "../stream.js";
import { throttle } from "../throttle.js";
import { time } from "../times.js";
import { askForSilence } from "./silence_dialog.js";

const LIMIT = 100;
const EVERY_MS = 15_000;
const READ_MS = 3_000;
const EVENT_TYPES = ["workflow_completed", "workflow_failed", "workflow_cancelled"];
const SIGNS = { info: "ⓘ", warning: "⚠", critical: "✖" };
const STATES = {
  pending: "waits to be told",
  sending: "is being told",
  sent: "told",
  failed: "could not be told",
  unknown: "may have been told",
  silenced: "silenced",
  quiet: "over before the end of the quiet hours",
};

export class NoticesView {
  constructor(app) {
    this.app = app;
    this.element = h("section", { class: "notices" }, h("h1", { tabindex: -1 }, "Notices"));
    this.readSoon = throttle(() => this.read(), READ_MS);
  }

  async open() {
    document.title = "Notices · Tachograph";
    this.summary = h("p", { class: "quiet", "aria-live": "polite" });
    this.list = h("div", {});
    this.silences = h("div", {});
    replace(
      this.element,
      h(
        "div",
        { class: "title" },
        h("h1", { tabindex: -1 }, "Notices"),
        this.summary,
        h("a", { href: "#/night" }, "The night at one look"),
      ),
      this.list,
      h(
        "div",
        { class: "title" },
        h("h2", {}, "Silences"),
        h("button", { type: "button", on: { click: () => this.silence() } }, "Silence something"),
      ),
      this.silences,
    );
    await this.read({ isFirst: true });
    this.stream = new EventStream("ws/workflows/stream", {
      types: EVENT_TYPES.join(","),
      onReload: () => {},
      onState: (state) => this.app.setConnection(state),
      onMessages: () => this.readSoon(),
    });
    this.timer = setInterval(() => !document.hidden && this.read(), EVERY_MS);
  }

  async read({ isFirst = false } = {}) {
    try {
      const [notices, silences] = await Promise.all([
        get("api/notices", { limit: LIMIT }),
        get("api/silences", { limit: 1000 }),
      ]);
      if (!this.isClosed) this.show(notices.items, silences.items);
    } catch (problem) {
      if (isFirst) throw problem;
    }
  }

  show(notices, silences) {
    // Unchanged elements stay: a screen reader does not repeat them, and the focus is kept.
    const key = JSON.stringify([notices, silences]);
    if (key === this.key) return;
    this.key = key;
    const current = notices.filter((notice) => !notice.recovered_at);
    const over = notices.filter((notice) => notice.recovered_at);
    setText(this.summary, current.length ? `${current.length} open` : "Everything holds that is expected.");
    const byId = new Map(silences.map((entry) => [entry.id, entry]));
    replace(
      this.list,
      current.map((notice) => this.notice(notice, byId)),
      over.length
        ? h(
            "details",
            { open: this.list.querySelector("details")?.open ?? !current.length },
            h("summary", {}, `${over.length} over`),
            over.map((notice) => this.notice(notice, byId)),
          )
        : null,
    );
    replace(this.silences, silences.length ? silenceTable(silences, (entry) => this.end(entry)) : noSilence());
  }

  notice(notice, silences) {
    const { execution_id: run } = notice;
    const name = h("b", {}, notice.workflow);
    const silence = silences.get(notice.silence_id);
    return h(
      "article",
      { class: `notice ${notice.recovered_at ? "over" : notice.severity}`, "aria-label": notice.workflow },
      h(
        "p",
        {},
        h("span", { title: notice.severity }, `${SIGNS[notice.severity] ?? ""} `),
        run ? h("a", { href: `#/executions/${encodeURIComponent(run)}` }, name) : name,
        ` ${notice.kind.replace("_", " ")} `,
        h("span", { class: "quiet" }, "since ", time(notice.since, "both")),
        notice.recovered_at
          ? h("span", { class: "quiet" }, " until ", time(notice.recovered_at), ` ${notice.recovery ?? ""}`)
          : null,
      ),
      h("p", {}, notice.text),
      h(
        "p",
        { class: "quiet" },
        notice.silence_id
          ? h(
              "span",
              { class: "silenced" },
              "🔕 silenced",
              silence ? [" until ", time(silence.until), silence.reason ? `: ${silence.reason}` : ""] : "",
              " ",
            )
          : null,
        notice.deliveries.length || notice.silence_id ? told(notice.deliveries) : "nobody is to be told",
      ),
      h(
        "span",
        { class: "actions" },
        h(
          "button",
          {
            type: "button",
            "aria-label": `Silence ${notice.workflow} ${notice.kind}`,
            on: { click: () => this.silence(notice) },
          },
          "Silence",
        ),
      ),
    );
  }

  async silence(notice) {
    if (!(await askForSilence(notice?.workflow, notice?.kind))) return;
    this.app.announce("Silenced.");
    await this.read();
  }

  async end(entry) {
    const text = "What still holds is told.";
    if (!(await confirmed("End this silence?", text, "End it"))) return;
    try {
      await remove(`api/silences/${encodeURIComponent(entry.id)}`);
      this.app.announce("The silence has ended.");
    } catch (problem) {
      this.app.showError(problem);
    }
    await this.read();
  }

  search() {
    return false;
  }

  recolour() {}

  close() {
    this.isClosed = true;
    this.stream?.close();
    this.readSoon.cancel();
    clearInterval(this.timer);
  }
}

function told(deliveries) {
  return deliveries
    .map(({ phase, receiver, state, reason }) => {
      const what = phase === "recovered" ? "its end " : "";
      return `${receiver}: ${what}${STATES[state] ?? state}${reason ? ` (${reason})` : ""}`;
    })
    .join(" · ");
}

function noSilence() {
  return h("p", { class: "quiet" }, "Nothing is silenced.");
}

function silenceTable(silences, end) {
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Silences" },
    h(
      "table",
      { class: "figures" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["Workflow", "Kind", "Severity", "Until", "By", "Reason", "End"].map((name) =>
            h("th", { scope: "col" }, name),
          ),
        ),
      ),
      h(
        "tbody",
        {},
        silences.map((entry) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, entry.workflow ?? "all", entry.workspace ? null : " (all workspaces)"),
            h("td", {}, entry.kind?.replace("_", " ") ?? "any"),
            h("td", {}, entry.severity ? `${entry.severity} or less` : "any"),
            h("td", {}, time(entry.until, "both")),
            h("td", {}, entry.created_by ?? "–"),
            h("td", {}, entry.reason || "–"),
            h("td", {}, h("button", { type: "button", on: { click: () => end(entry) } }, "End")),
          ),
        ),
      ),
    ),
  );
}
