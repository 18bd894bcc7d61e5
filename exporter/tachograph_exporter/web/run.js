// A run: what it did, when, why it took so long; live while it goes on.

import { get } from "./api.js";
import { h, replace, say, debounce } from "./dom.js";
import { dollars, duration, moment, percent, short, status, STATUSES, time } from "./format.js";
import { picture } from "./gantt.js";
import { Graph } from "./graph.js";
import { Run } from "./model.js";
import { CanvasPainter, palette, SvgPainter } from "./painter.js";
import { distribution } from "./spread.js";
import { Stream } from "./stream.js";
import { Timeline } from "./timeline.js";

const MOST_IN_PICTURE = 2_000;
const PICTURE_WIDTH = 1600;

export class RunView {
  constructor(app, id, parameters) {
    this.app = app;
    this.id = id;
    this.path = `api/workflows/executions/${encodeURIComponent(id)}`;
    this.parameters = parameters;
    this.element = h(
      "section",
      { class: "run" },
      h("h1", { tabindex: -1 }, "Run"),
      h("p", { class: "quiet" }, "Reading the run…"),
    );
    this.again = debounce(() => this.read(), 400);
  }

  async open() {
    const timeline = await get(`${this.path}/timeline`);
    this.run = new Run(timeline);
    this.build();
    this.follow();
    this.usual();
  }

  /** Follow it where more is to come. */
  follow() {
    this.stream = new Stream(`ws/workflows/executions/${encodeURIComponent(this.id)}`, {
      types: "all",
      onReload: () => this.run.isOpen && this.read(),
      onState: (state) => this.app.connection(state),
      onMessages: (messages) => this.take(messages),
    });
    // What goes on grows by itself.
    this.clock = setInterval(() => {
      if (!this.run.isOpen) return;
      this.facts();
      this.timeline.draw();
    }, 250);
  }

  take(messages) {
    let isWorthReading = false;
    let isSelected = false;
    const count = this.run.steps.length;
    for (const message of messages) {
      const changed = this.run.apply(message);
      isWorthReading ||= changed && message.event_type.startsWith("workflow_");
      isSelected ||= changed && message.workflow_step_id === this.timeline.selected?.id;
      if (message.event_type === "step_failed" || (changed && message.event_type.startsWith("workflow_"))) {
        this.app.announce(message.message);
      }
    }
    this.timeline.changed({ isOrdered: count !== this.run.steps.length });
    this.graph?.changed();
    this.facts();
    if (isSelected) this.details();
    if (isWorthReading) this.again();
  }

  /** Read the timeline again: what only the whole tells (the critical path, slack) is then right. */
  async read() {
    try {
      this.run.read(await get(`${this.path}/timeline`));
    } catch (problem) {
      this.app.failed(problem);
      return;
    }
    this.timeline.arrange();
    this.graph?.arrange();
    this.graph?.resize();
    if (!this.run.isOpen) this.timeline.whole();
    this.facts();
    this.details();
  }

  async usual() {
    try {
      this.metrics = await get(`api/workflows/${this.run.timeline.workflow_id}/metrics`, { from: "30d" });
      this.facts();
    } catch {
      // A run can be looked at without knowing what is usual.
    }
  }

  build() {
    const { timeline } = this.run;
    document.title = `${timeline.workflow_name} · Tachograph`;
    this.heading = h("h1", { tabindex: -1 }, timeline.workflow_name);
    this.state = h("span", { class: "state" });
    this.figures = h("dl", { class: "facts" });
    this.trouble = h("p", { class: "trouble", hidden: true });
    this.timeline = new Timeline(this.run, { onSelect: (step) => this.chosen(step) });
    this.panel = h("aside", { class: "panel", "aria-label": "Step", hidden: true });
    const order = this.select(
      "Rows by",
      { start: "start", depth: "depth", defined: "definition", length: "length" },
      this.parameters.get("order") ?? "start",
      (value) => {
        this.timeline.options.order = value;
        this.timeline.arrange();
        this.app.keep({ order: value === "start" ? null : value });
      },
    );
    const text = h("input", {
      type: "search",
      id: "find-step",
      placeholder: "step name",
      "aria-label": "Only steps whose name contains",
      value: this.parameters.get("step") ?? "",
      on: {
        input: debounce(() => {
          this.timeline.options.text = text.value;
          this.timeline.arrange();
          this.app.keep({ step: text.value });
        }, 150),
      },
    });
    const only = this.select(
      "Only",
      { "": "all", ...Object.fromEntries(Object.keys(STATUSES).map((word) => [word, word])) },
      this.parameters.get("status") ?? "",
      (value) => {
        this.timeline.options.statuses = new Set(value ? [value] : []);
        this.timeline.arrange();
        this.app.keep({ status: value });
      },
    );
    this.tabs = ["timeline", "graph"].map((name) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          id: `tab-${name}`,
          "aria-controls": "drawing",
          on: { click: () => this.show(name), keydown: (event) => this.turn(event) },
        },
        name === "timeline" ? "Timeline" : "Graph",
      ),
    );
    const zooms = h(
      "span",
      { class: "group" },
      this.button("−", "Zoom out", () => this.drawing.zoom(this.graphShown ? 1 / 1.3 : 1 / 0.7)),
      this.button("+", "Zoom in", () => this.drawing.zoom(this.graphShown ? 1.3 : 0.7)),
      this.button("Whole", "Show the whole run", () => this.drawing.whole()),
    );
    this.toolbar = h(
      "div",
      { class: "toolbar" },
      h("div", { role: "tablist", "aria-label": "Drawing", class: "tabs" }, this.tabs),
      order,
      text,
      only,
      zooms,
      this.saving(),
    );
    this.box = h(
      "div",
      { class: "drawing", role: "tabpanel", id: "drawing", "aria-labelledby": "tab-timeline" },
      this.timeline.element,
    );
    replace(
      this.element,
      h(
        "header",
        { class: "runhead" },
        h("div", { class: "title" }, this.heading, this.state),
        this.figures,
        this.trouble,
        this.given(timeline),
      ),
      this.toolbar,
      h("div", { class: "split" }, this.box, this.panel),
    );
    this.timeline.options.order = this.parameters.get("order") ?? "start";
    this.timeline.options.text = text.value;
    if (this.parameters.get("status")) this.timeline.options.statuses.add(this.parameters.get("status"));
    this.timeline.arrange();
    this.facts();
    this.show(this.parameters.get("view") === "graph" ? "graph" : "timeline");
    const wanted =
      this.run.byId.get(this.parameters.get("selected")) ??
      (this.run.isOpen ? null : this.run.steps.find((step) => step.status === "failed"));
    if (wanted) this.timeline.select(wanted);
  }

  /** What the run was given. */
  given({ input_summary: inputs }) {
    if (!inputs || !Object.keys(inputs).length) return null;
    const text = Object.entries(inputs)
      .map(([name, value]) => `${name} = ${JSON.stringify(value)}`)
      .join(", ");
    if (text.length < 120)
      return h("p", { class: "given" }, h("span", { class: "quiet" }, "Inputs "), h("code", {}, text));
    return h(
      "details",
      { class: "given" },
      h("summary", {}, "Inputs"),
      h("pre", { tabindex: 0 }, JSON.stringify(inputs, null, 2)),
    );
  }

  get drawing() {
    return this.graphShown ? this.graph : this.timeline;
  }

  show(name) {
    this.graphShown = name === "graph";
    if (this.graphShown) this.graph ??= new Graph(this.run, { onSelect: (step) => this.timeline.select(step) });
    replace(this.box, this.graphShown ? this.graph.element : this.timeline.element);
    this.box.setAttribute("aria-labelledby", `tab-${name}`);
    for (const tab of this.tabs) {
      const isOn = tab.id === `tab-${name}`;
      tab.setAttribute("aria-selected", String(isOn));
      tab.tabIndex = isOn ? 0 : -1;
    }
    this.graph?.select(this.timeline.selected);
    this.drawing.resize();
    this.app.keep({ view: this.graphShown ? "graph" : null });
  }

  turn(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    this.show(this.graphShown ? "timeline" : "graph");
    this.tabs[this.graphShown ? 1 : 0].focus();
  }

  button(text, label, work) {
    return h("button", { type: "button", "aria-label": label, title: label, on: { click: work } }, text);
  }

  select(label, options, value, work) {
    const element = h(
      "select",
      { "aria-label": label, on: { change: () => work(element.value) } },
      Object.entries(options).map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
    );
    return h("label", { class: "choice" }, h("span", { class: "quiet" }, label), element);
  }

  saving() {
    const items = {
      JSON: () => this.fetchFile("json", `${this.path}/timeline`, {}),
      "Chrome trace": () => this.fetchFile("trace.json", `${this.path}/timeline`, { format: "chrome" }),
      OTLP: () => this.fetchFile("otlp.json", `${this.path}/timeline`, { format: "otlp" }),
      SVG: () => this.saveSvg(),
      PNG: () => this.savePng(),
    };
    const element = h(
      "details",
      { class: "menu" },
      h("summary", {}, "Save"),
      h(
        "div",
        { class: "items" },
        Object.entries(items).map(([name, work]) =>
          h(
            "button",
            {
              type: "button",
              on: {
                click: () => {
                  element.open = false;
                  work();
                },
              },
            },
            name,
          ),
        ),
      ),
    );
    element.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        element.open = false;
        element.querySelector("summary").focus();
      }
    });
    return element;
  }

  async fetchFile(ending, path, values) {
    const body = await get(path, values);
    this.file(ending, new Blob([JSON.stringify(body)], { type: "application/json" }));
  }

  file(ending, blob) {
    const link = h("a", {
      href: URL.createObjectURL(blob),
      download: `${this.run.timeline.workflow_name.replace(/[^\w.-]+/g, "_")}-${this.id.slice(0, 8)}.${ending}`,
    });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  paintWhole(painter) {
    const steps = this.timeline.rows;
    if (steps.length > MOST_IN_PICTURE)
      this.app.announce(`The picture shows the first ${MOST_IN_PICTURE} of ${steps.length} rows.`);
    const { timeline } = this.run;
    const title = `${timeline.workflow_name} ${this.run.status} · ${duration(this.run.length() / 1000)} · ${timeline.started_at ?? ""} · ${this.id}`;
    return picture(painter, palette(), this.run, steps.slice(0, MOST_IN_PICTURE), {
      width: PICTURE_WIDTH,
      now: Date.now(),
      title,
    });
  }

  saveSvg() {
    const painter = new SvgPainter();
    this.paintWhole(painter);
    this.file("svg", new Blob([String(painter)], { type: "image/svg+xml" }));
  }

  savePng() {
    const canvas = document.createElement("canvas");
    this.paintWhole(new CanvasPainter(canvas));
    canvas.toBlob((blob) => blob && this.file("png", blob), "image/png");
  }

  /** What stands above the drawing. */
  facts() {
    const { run, metrics } = this;
    const { timeline } = run;
    if (this.state.dataset.status !== run.status) {
      this.state.dataset.status = run.status;
      replace(this.state, status(run.status));
    }
    const length = run.length() / 1000;
    const counts = { completed: 0, failed: 0, skipped: 0, running: 0 };
    let retries = 0;
    for (const step of run.steps) {
      const word =
        step.status === "timeout" || step.status === "lost"
          ? "failed"
          : step.status === "retrying"
            ? "running"
            : step.status;
      if (word in counts) counts[word] += 1;
      retries += Math.max(0, step.attempts.length - 1);
    }
    const total = Math.max(timeline.step_count, run.steps.length);
    const steps = [`${counts.completed} of ${total} completed`];
    for (const word of ["running", "failed", "skipped"]) if (counts[word]) steps.push(`${counts[word]} ${word}`);
    if (retries) steps.push(`${retries} retries`);
    const share = !run.isOpen && length ? (100 * timeline.critical_path_seconds) / length : null;
    const facts = [
      ["Duration", duration(length), metrics?.distribution.length ? distribution(metrics, length, run.isOpen) : null],
      ["Started", time(timeline.started_at)],
      ["Steps", steps.join(", ")],
      ["Success", total ? percent((100 * counts.completed) / Math.max(1, total - counts.skipped), 0) : "–"],
      ["Parallelism", run.isOpen || timeline.parallelism === null ? "–" : timeline.parallelism.toFixed(2)],
      ["Critical path", run.isOpen ? "–" : `${duration(timeline.critical_path_seconds)} (${percent(share, 0)})`],
      timeline.cost_usd ? ["Cost", dollars(timeline.cost_usd)] : null,
      ["Run", this.copied(this.id)],
      ["Trace", this.trace()],
    ].filter(Boolean);
    // Only what changed is touched: nothing jumps under the pointer or is read out again.
    facts.forEach(([name, value, more], index) => {
      let row = this.figures.children[index];
      const key = typeof value === "string" ? value : value.textContent;
      if (row?.dataset.key === `${name} ${key} ${Boolean(more)}`) return;
      row = h("div", { data: { key: `${name} ${key} ${Boolean(more)}` } }, h("dt", {}, name), h("dd", {}, value, more));
      if (this.figures.children[index]) this.figures.children[index].replaceWith(row);
      else this.figures.append(row);
    });
    while (this.figures.children.length > facts.length) this.figures.lastChild.remove();
    this.trouble.hidden = !timeline.error_message;
    say(this.trouble, timeline.error_message ? `${timeline.error_type}: ${timeline.error_message}` : "");
    const of = [
      ["All runs", `#/?workflow=${timeline.workflow_id}`],
      ["Workflow", `#/workflows/${timeline.workflow_id}`],
      ["Against its usual", `#/workflows/${timeline.workflow_id}?a=${this.id}`],
    ];
    this.links ??= h(
      "nav",
      { class: "links", "aria-label": "This run" },
      of.map(([text, href]) => h("a", { href }, text)),
    );
    if (!this.links.isConnected) this.element.querySelector(".title")?.append(this.links);
  }

  /** An id in short, with a button that copies the whole. */
  copied(id) {
    const button = h(
      "button",
      {
        type: "button",
        class: "copy",
        title: `Copy ${id}`,
        "aria-label": "Copy the run's id",
        on: {
          click: async () => {
            await navigator.clipboard?.writeText(id);
            say(button, "copied");
            this.app.announce("The run's id is copied.");
            setTimeout(() => say(button, "copy"), 1500);
          },
        },
      },
      "copy",
    );
    return h("span", {}, h("code", { title: id }, short(id)), " ", button);
  }

  trace() {
    const id = this.run.timeline.trace_id;
    const url = this.app.about.trace_url;
    const text = `${id.slice(0, 8)}…`;
    if (!url) return h("code", { title: id }, text);
    return h(
      "a",
      { href: url.replaceAll("{trace_id}", id), target: "_blank", rel: "noopener noreferrer", title: id },
      text,
    );
  }

  chosen(step) {
    this.graph?.select(step);
    this.app.keep({ selected: step?.id ?? null });
    this.details();
  }

  /** The step that is selected: everything known of it. */
  async details() {
    const step = this.timeline.selected;
    this.panel.hidden = !step;
    if (!step) return;
    this.describe(step, step.entry);
    if (step.entry.status === step.status) return;
    // It went on since the timeline was read.
    try {
      const found = await get(`${this.path}/timeline`, { step: step.name });
      const entry = found.step_timeline.find((one) => one.step_id === step.id);
      if (entry && this.timeline.selected === step) {
        step.entry = entry;
        this.describe(step, entry);
      }
    } catch (problem) {
      this.app.failed(problem);
    }
  }

  describe(step, entry) {
    const length =
      step.start === null
        ? null
        : (entry.duration_seconds ?? ((this.run.reach(step, Date.now()) ?? step.start) - step.start) / 1000);
    const names = (ids) => ids.map((id) => this.run.byId.get(id)).filter(Boolean);
    const waits = entry.wait
      ? [
          ["dependencies", entry.wait.dependency],
          ["a slot", entry.wait.queue],
          ["backoff", entry.wait.backoff],
        ].filter(([, value]) => value > 0)
      : [];
    const facts = [
      ["Status", status(step.status)],
      entry.skip_reason ? ["Why", entry.skip_reason.replaceAll("_", " ")] : null,
      ["Started", time(entry.started_at)],
      ["Ended", time(entry.completed_at)],
      ["Duration", duration(length)],
      entry.run_seconds !== undefined && entry.run_seconds !== null ? ["Running", duration(entry.run_seconds)] : null,
      waits.length ? ["Waited for", waits.map(([name, value]) => `${name} ${duration(value)}`).join(", ")] : null,
      ["Slack", step.isCritical ? "none: it is on the critical path" : duration(entry.slack_seconds)],
      entry.cost
        ? [
            "Cost",
            `${dollars(entry.cost.usd)}, ${entry.cost.tokens_in} tokens in, ${entry.cost.tokens_out} out${entry.cost.models.length ? ` (${entry.cost.models.join(", ")})` : ""}`,
          ]
        : null,
      ["Type", entry.step_type],
    ].filter(Boolean);
    const jump = (other) =>
      h("button", { type: "button", class: "link", on: { click: () => this.timeline.select(other) } }, other.name);
    const stepList = (title, steps) =>
      steps.length
        ? [
            h("h3", {}, title),
            h(
              "ul",
              { class: "plain" },
              steps.slice(0, 50).map((other) => h("li", {}, jump(other))),
              steps.length > 50 ? h("li", { class: "quiet" }, `and ${steps.length - 50} more`) : null,
            ),
          ]
        : [];
    replace(
      this.panel,
      h(
        "div",
        { class: "panelhead" },
        h("h2", {}, step.name),
        this.button("×", "Close (Escape)", () => this.timeline.select(null)),
      ),
      h(
        "dl",
        { class: "pairs" },
        facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
      ),
      entry.error_message
        ? [
            h("h3", {}, "Error"),
            h("p", { class: "trouble" }, `${entry.error_type}: ${entry.error_message}`),
            entry.error_stack
              ? h("details", {}, h("summary", {}, "Stack"), h("pre", { tabindex: 0 }, entry.error_stack))
              : null,
          ]
        : null,
      step.attempts.length > 1 ? this.attempts(step) : null,
      stepList("Waited for", names(step.dependsOn)),
      stepList("Waited for by", step.dependents),
      this.summary("Inputs", entry.input_summary),
      this.summary("Outputs", entry.output_summary),
      entry.measures?.length
        ? [
            h("h3", {}, "Measured"),
            h(
              "dl",
              { class: "pairs" },
              entry.measures.map((one) => [h("dt", {}, one.name), h("dd", {}, `${one.value} ${one.unit}`)]),
            ),
          ]
        : null,
      entry.logs?.length
        ? [
            h("h3", {}, "Log"),
            h(
              "ol",
              { class: "log" },
              entry.logs.map((line) =>
                h(
                  "li",
                  { class: line.level },
                  h("span", { class: "quiet" }, duration((moment(line.at) - this.run.origin) / 1000)),
                  ` ${line.level} `,
                  line.message,
                ),
              ),
            ),
          ]
        : null,
      h("p", { class: "quiet" }, "Span ", h("code", {}, entry.span_id ?? ""), " of trace ", this.trace()),
    );
  }

  attempts(step) {
    return [
      h("h3", {}, "Attempts"),
      h(
        "ol",
        { class: "attempts" },
        step.attempts.map((attempt) =>
          h(
            "li",
            {},
            status(attempt.status),
            ` ${duration(attempt.end === null || attempt.start === null ? null : (attempt.end - attempt.start) / 1000)}`,
            attempt.backoff
              ? h("span", { class: "quiet" }, ` after ${duration(attempt.backoff / 1000)} of backoff`)
              : null,
            attempt.error ? h("div", { class: "trouble" }, attempt.error) : null,
          ),
        ),
      ),
    ];
  }

  summary(title, value) {
    if (value === null || value === undefined) return null;
    return [h("h3", {}, title), h("pre", { tabindex: 0 }, JSON.stringify(value, null, 2))];
  }

  search() {
    const field = this.element.querySelector("#find-step");
    field?.focus();
    return Boolean(field);
  }

  recolour() {
    this.timeline?.recolour();
    this.graph?.recolour();
  }

  close() {
    this.stream?.close();
    clearInterval(this.clock);
    this.again.cancel();
    this.timeline?.close();
    this.graph?.close();
  }
}
