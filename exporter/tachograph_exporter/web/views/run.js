// One run: how it compares with usual ones, its figures, timeline and graph, and the selected step; live while open.

import { get } from "../api.js";
import { button, labelledSelect } from "../controls.js";
import { debounce } from "../debounce.js";
import { h, replace, setText } from "../dom.js";
import { Graph } from "../drawing/graph.js";
import { Timeline } from "../drawing/timeline.js";
import { shortId, status, STATUS_SYMBOLS } from "../format.js";
import { Run } from "../run.js";
import { EventStream } from "../stream.js";
import { throttle } from "../throttle.js";
import { downloadMenu } from "./downloads.js";
import { runActions } from "./run_actions.js";
import { copyableId, inputsOf, progress, RunFacts } from "./run_facts.js";
import { Stacks } from "./stacks.js";
import { StepBelow } from "./step_below.js";
import { StepLog } from "./step_log.js";
import { causeLink, stepDetails } from "./step_panel.js";
import { Why } from "./why.js";

const STATE_INTERVAL_MS = 3_000;

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
      h("p", { class: "quiet" }, "Loading…"),
    );
    this.readSoon = debounce(() => this.read(), 400);
    this.compareSoon = debounce(() => this.readComparison(), 1500);
    this.readStateSoon = throttle(() => this.readState(), STATE_INTERVAL_MS);
    this.rememberView = debounce((view) => {
      const text = (at) => String(Number(at.toFixed(3)));
      this.app.setParameters(view ? { from: text(view.from), to: text(view.to) } : { from: null, to: null });
    }, 250);
  }

  async open() {
    const timeline = await get(`${this.path}/timeline`);
    this.run = new Run(timeline);
    this.build();
    this.follow();
    this.readMetrics();
    this.readComparison();
    this.readDefinition();
  }

  /** Receive the run's events. */
  follow() {
    this.stream = new EventStream(`ws/workflows/executions/${encodeURIComponent(this.id)}`, {
      types: "all",
      onReload: () => this.run.isOpen && this.read(),
      onState: (state) => this.app.setConnection(state),
      onMessages: (messages) => this.apply(messages),
    });
    // Bars and durations of an open run grow without events.
    this.clock = setInterval(() => {
      if (!this.run.isOpen) return;
      this.updateFacts();
      this.timeline.draw();
    }, 250);
  }

  apply(messages) {
    let mustRead = false;
    let isSelectedChanged = false;
    const count = this.run.steps.length;
    for (const message of messages) {
      if (message.event_type === "step_lines") {
        if (message.workflow_step_id === this.timeline.selected?.id) this.log.readSoon();
        continue;
      }
      const changed = this.run.apply(message);
      mustRead ||= changed && message.event_type.startsWith("workflow_");
      isSelectedChanged ||= changed && message.workflow_step_id === this.timeline.selected?.id;
      if (message.event_type === "step_failed" || (changed && message.event_type.startsWith("workflow_"))) {
        this.app.announce(message.message);
      }
    }
    this.timeline.changed({ isOrdered: count !== this.run.steps.length });
    this.graph?.changed();
    this.updateFacts();
    if (isSelectedChanged) this.updatePanel();
    if (mustRead) this.readSoon();
    else if (this.run.isOpen) this.readStateSoon();
    if (count !== this.run.steps.length || mustRead) this.compareSoon();
  }

  /** Read the timeline again, for what cannot be derived from single events (the critical path, slack). */
  async read() {
    try {
      this.run.read(await get(`${this.path}/timeline`));
    } catch (problem) {
      this.app.showError(problem);
      return;
    }
    this.timeline.arrange();
    this.graph?.arrange();
    this.graph?.resize();
    if (!this.run.isOpen) this.timeline.showAll();
    this.updateFacts();
    this.updatePanel();
  }

  /** Read when the run is now expected to end. */
  async readState() {
    try {
      const { expected_end_at: end, usual_duration_seconds: usual } = await get(`${this.path}/status`);
      Object.assign(this.run.timeline, { expected_end_at: end, usual_duration_seconds: usual });
    } catch {
      // What was expected stays.
    }
  }

  async readMetrics() {
    try {
      this.metrics = await get(`api/workflows/${this.run.timeline.workflow_id}/metrics`, { from: "30d" });
      this.updateFacts();
    } catch {
      // The run is shown without the usual durations.
    }
  }

  /** Read how the run compares with usual ones, and why: what is under its title, and a tick on each bar. */
  async readComparison() {
    const why = this.why.read();
    try {
      const comparison = await get("api/workflows/executions/compare", { execution: this.id });
      this.sentence = this.run.isOpen ? "" : comparison.sentence;
      this.run.compare(comparison);
    } catch {
      // The run is shown without: it is too long to be compared now, or the service is away.
      return;
    }
    // All at once, so that the page moves only once.
    this.why.show(await why);
    this.updateFacts();
    this.timeline.draw();
    if (this.timeline.selected) this.showStep(this.timeline.selected);
  }

  /** Read the workflow: whether it can run again, and the steps that an open run has not reached yet. */
  async readDefinition() {
    try {
      this.definition = await get(`api/workflows/${encodeURIComponent(this.run.timeline.workflow_id)}`);
    } catch {
      return;
    }
    this.run.expect(this.definition);
    if (this.run.isOpen) {
      this.run.link();
      this.timeline.arrange();
      this.graph?.changed();
    }
    this.updateFacts();
  }

  build() {
    const { timeline } = this.run;
    document.title = `${timeline.workflow_name} · Tachograph`;
    this.heading = h("h1", { tabindex: -1, title: timeline.workflow_name }, timeline.workflow_name);
    this.state = h("span", { class: "state" });
    this.answer = h("p", { class: "sentence", hidden: true });
    this.facts = new RunFacts(this.run, {
      id: copyableId(this.id, (text) => this.app.announce(text)),
      parent: timeline.parent_execution_id ? this.parentLink() : null,
      trace: this.traceLink(),
    });
    this.error = h("p", { class: "error-text", hidden: true });
    this.cause = h("div", { hidden: true });
    this.why = new Why(this.id, {
      select: (name, { isTest = false } = {}) => {
        const step = this.run.steps.find((candidate) => candidate.entry.step_name === name);
        if (step && !isTest) this.timeline.select(step);
        return Boolean(step);
      },
    });
    this.actions = runActions(this.run, {
      isRunnable: () => Boolean(this.definition?.is_runnable),
      announce: (text) => this.app.announce(text),
      showError: (problem) => this.app.showError(problem),
      navigate: (address) => this.app.navigate(address),
    });
    this.stacks = new Stacks(this.path, {
      canAsk: !this.app.isSaved,
      announce: (text) => this.app.announce(text),
      showError: (problem) => this.app.showError(problem),
    });
    this.timeline = new Timeline(this.run, {
      onSelect: (step) => this.onStepSelected(step),
      onView: (view) => this.rememberView(view),
    });
    this.log = new StepLog(this.path, {
      logsUrl: this.app.about.logs_url,
      showError: (problem) => this.app.showError(problem),
    });
    this.below = new StepBelow(this.path);
    this.panel = h("aside", { class: "panel", "aria-label": "Step", hidden: true });
    const order = labelledSelect(
      "Rows by",
      { start: "start", depth: "depth", defined: "definition", length: "length" },
      this.parameters.get("order") ?? "start",
      (value) => {
        this.timeline.options.order = value;
        this.timeline.arrange();
        this.app.setParameters({ order: value === "start" ? null : value });
      },
    );
    const text = h("input", {
      type: "search",
      id: "find-step",
      placeholder: "step name",
      "aria-label": "Filter steps by name",
      value: this.parameters.get("step") ?? "",
      on: {
        input: debounce(() => {
          this.timeline.options.text = text.value;
          this.timeline.arrange();
          this.app.setParameters({ step: text.value });
        }, 150),
      },
    });
    const only = labelledSelect(
      "Only",
      { "": "all", ...Object.fromEntries(Object.keys(STATUS_SYMBOLS).map((word) => [word, word])) },
      this.parameters.get("status") ?? "",
      (value) => {
        this.timeline.options.statuses = new Set(value ? [value] : []);
        this.timeline.arrange();
        this.app.setParameters({ status: value });
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
          on: { click: () => this.showDrawing(name), keydown: (event) => this.switchTab(event) },
        },
        name === "timeline" ? "Timeline" : "Graph",
      ),
    );
    const zooms = h(
      "span",
      { class: "group" },
      button("−", "Zoom out", () => this.drawing.zoom(this.isGraph ? 1 / 1.3 : 1 / 0.7)),
      button("+", "Zoom in", () => this.drawing.zoom(this.isGraph ? 1.3 : 0.7)),
      button("Fit", "Fit the whole run", () => this.drawing.showAll()),
    );
    this.folding = h(
      "button",
      { type: "button", "aria-pressed": "true", on: { click: () => this.toggleFolding() } },
      "Fold siblings",
    );
    this.toolbar = h(
      "div",
      { class: "toolbar" },
      h("div", { role: "tablist", "aria-label": "Drawing", class: "tabs" }, this.tabs),
      order,
      text,
      only,
      zooms,
      this.folding,
      downloadMenu(this.run, this.path, {
        rows: () => this.timeline.rows,
        announce: (message) => this.app.announce(message),
        showError: (problem) => this.app.showError(problem),
        isSaved: Boolean(this.app.isSaved),
      }),
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
        h("div", { class: "title" }, this.heading, this.state, this.actions.element),
        this.answer,
        this.error,
        this.cause,
        this.why.element,
        this.facts.element,
        inputsOf(timeline),
      ),
      this.toolbar,
      h("div", { class: "split" }, this.box, this.panel),
    );
    this.timeline.options.order = this.parameters.get("order") ?? "start";
    this.timeline.options.text = text.value;
    if (this.parameters.get("status")) this.timeline.options.statuses.add(this.parameters.get("status"));
    this.timeline.arrange();
    this.updateFacts();
    this.showDrawing(this.parameters.get("view") === "graph" ? "graph" : "timeline");
    const selected =
      this.run.byId.get(this.parameters.get("selected")) ?? (this.run.isOpen ? null : this.run.firstFailed);
    const [from, to] = ["from", "to"].map((name) => Number(this.parameters.get(name) ?? NaN));
    if (to > from) this.timeline.showRange(from, to);
    if (selected) this.timeline.select(selected);
  }

  toggleFolding() {
    this.graph.toggleFolding();
    this.folding.setAttribute("aria-pressed", String(this.graph.isFolding));
  }

  get drawing() {
    return this.isGraph ? this.graph : this.timeline;
  }

  showDrawing(name) {
    this.isGraph = name === "graph";
    if (this.isGraph) this.graph ??= new Graph(this.run, { onSelect: (step) => this.timeline.select(step) });
    replace(this.box, this.isGraph ? this.graph.element : this.timeline.element);
    this.box.setAttribute("aria-labelledby", `tab-${name}`);
    for (const tab of this.tabs) {
      const isOn = tab.id === `tab-${name}`;
      tab.setAttribute("aria-selected", String(isOn));
      tab.tabIndex = isOn ? 0 : -1;
    }
    this.graph?.select(this.timeline.selected);
    this.folding.hidden = !this.isGraph;
    this.drawing.resize();
    this.app.setParameters({ view: this.isGraph ? "graph" : null });
  }

  switchTab(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    this.showDrawing(this.isGraph ? "timeline" : "graph");
    this.tabs[this.isGraph ? 1 : 0].focus();
  }

  /** Update what is above the drawing. */
  updateFacts() {
    const { run, metrics } = this;
    const { timeline } = run;
    if (this.state.dataset.status !== run.status) {
      this.state.dataset.status = run.status;
      replace(this.state, status(run.status));
    }
    const answer = run.isOpen ? progress(run) : this.sentence;
    this.answer.hidden = !answer;
    this.answer.classList.toggle("progress", run.isOpen);
    setText(this.answer, answer ?? "");
    this.facts.update(metrics);
    this.actions.update();
    // The sentence tells the error, too.
    const error = timeline.error_message;
    const cause = run.firstFailed?.entry.error_message ?? error;
    this.error.hidden = !error || Boolean(answer?.includes(cause));
    setText(this.error, error ? `${timeline.error_type}: ${error}` : "");
    const group = timeline.failure_group;
    if (group && this.cause.dataset.group !== group) {
      this.cause.dataset.group = group;
      replace(this.cause, causeLink(group));
      this.cause.hidden = false;
    }
    const links = [
      ["All runs", `#/?workflow=${timeline.workflow_id}`],
      ["Workflow", `#/workflows/${timeline.workflow_id}`],
      ["Compare", `#/workflows/${timeline.workflow_id}?a=${this.id}`],
    ];
    this.links ??= h(
      "nav",
      { class: "links", "aria-label": "This run" },
      links.map(([text, href]) => h("a", { href }, text)),
    );
    if (!this.links.isConnected) this.element.querySelector(".title")?.append(this.links);
  }

  /** A link to the run, and its step, that this run is inside. */
  parentLink() {
    const { parent_execution_id: id, parent_step_id: step } = this.run.timeline;
    const selected = step ? `?selected=${encodeURIComponent(step)}` : "";
    return h("a", { href: `#/executions/${encodeURIComponent(id)}${selected}` }, shortId(id));
  }

  traceLink() {
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

  onStepSelected(step) {
    this.graph?.select(step);
    this.app.setParameters({ selected: step?.id ?? null });
    this.updatePanel();
  }

  /** Show the details of the selected step. */
  async updatePanel() {
    const step = this.timeline.selected;
    this.panel.hidden = !step;
    if (!step) return;
    this.showStep(step);
    if (step.isExpected) return;
    if (step.entry.status === step.status) return;
    // The step changed after the timeline was read.
    try {
      const timeline = await get(`${this.path}/timeline`, { step: step.entry.step_name });
      const entry = timeline.step_timeline.find((candidate) => candidate.step_id === step.id);
      if (entry && this.timeline.selected === step) {
        step.entry = entry;
        this.showStep(step);
      }
    } catch (problem) {
      this.app.showError(problem);
    }
  }

  showStep(step) {
    const select = (other) => this.timeline.select(other);
    this.log.show(this.run, step);
    this.below.show(step);
    // What is typed into stays what is typed into.
    const focused = this.panel.contains(document.activeElement) ? document.activeElement : null;
    const parts = { trace: this.traceLink(), below: this.below.element, log: this.log.element };
    replace(this.panel, stepDetails(this.run, step, { select, ...parts }), this.stacks.section(step));
    if (focused?.isConnected) focused.focus();
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
    this.readSoon.cancel();
    this.compareSoon.cancel();
    this.readStateSoon.cancel();
    this.rememberView.cancel();
    this.log?.close();
    this.below?.close();
    this.timeline?.close();
    this.graph?.close();
  }
}
