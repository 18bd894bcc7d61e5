// What a step does now, on request, and what it did, if it was sampled: a flame graph in its panel.

import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { duration, percent } from "../format.js";
import { Flame, shortName } from "../drawing/flame.js";
import { time } from "../times.js";

const MAX_STACKS = 10;

export class Stacks {
  /** `path` is the run's path of the API; `canAsk`: there is a service; `announce(text)`, `showError(error)`. */
  constructor(path, { canAsk, announce, showError }) {
    this.canAsk = canAsk;
    this.path = `${path}/stacks`;
    this.announce = announce;
    this.showError = showError;
    this.sections = new Map();
  }

  /** The part of a step's panel. It is the same element as long as the step stays what it is. */
  section(step) {
    if (step.isExpected) return null;
    const key = `${step.id} ${step.status}`;
    let section = this.sections.get(key);
    if (!section) {
      section = h("section", { class: "stacks", "aria-label": "Stacks" });
      this.sections.set(key, section);
      this.fill(section, step, null);
      this.read(section, step, false);
    }
    return section;
  }

  async read(section, step, isAsked) {
    try {
      const answer = await get(this.path, { step: step.id, now: isAsked });
      this.fill(section, step, answer);
      return answer;
    } catch (problem) {
      if (isAsked) this.showError(problem);
      return null;
    }
  }

  fill(section, step, answer) {
    const items = answer?.items ?? [];
    const sampled = items.filter((item) => item.profile);
    const told = items.filter((item) => item.now && (item.now.is_new || step.status !== "running"));
    const isRunning = this.canAsk && step.status === "running";
    section.hidden = !isRunning && !sampled.length && !told.length;
    replace(
      section,
      h("h3", {}, "Stacks"),
      isRunning ? this.askButton(section, step) : null,
      answer?.message && isRunning && answer.answer === "no_answer" ? h("p", { role: "status" }, answer.message) : null,
      told.map((item) => now(item)),
      sampled.map((item) => this.profile(step, item)),
    );
  }

  askButton(section, step) {
    const button = h("button", { type: "button", on: { click: () => ask() } }, "What is it doing now?");
    const ask = async () => {
      button.disabled = true;
      button.textContent = "Asking…";
      const answer = await this.read(section, step, true);
      const count = answer?.items.reduce((sum, item) => sum + (item.now?.is_new ? item.now.stacks.length : 0), 0);
      if (answer) this.announce(count ? `${count} stacks of ${step.name}` : (answer.message ?? "no stacks"));
      section.querySelector("button")?.focus({ preventScroll: true });
      button.disabled = false;
      button.textContent = "What is it doing now?";
    };
    return h("p", {}, button);
  }

  async save(step) {
    try {
      const file = await get(this.path, { step: step.id, now: false, format: "speedscope" });
      saveFile(`${step.name.replace(/[^\w.-]+/g, "_")}.speedscope.json`, file);
    } catch (problem) {
      this.showError(problem);
    }
  }

  profile(step, { attempt, profile }) {
    const top = profile.top[0];
    const which = attempt > 1 ? `attempt ${attempt}, ` : "";
    const left = profile.dropped_count ? `, ${profile.dropped_count.toLocaleString("en")} left out` : "";
    const flame = new Flame(profile.stacks, {
      label: `Flame graph of ${step.name}: arrows walk, Enter enlarges`,
      seconds: profile.interval_seconds,
    });
    return [
      h(
        "p",
        { class: "quiet" },
        `Sampled for ${duration(profile.seconds)}, ${which}${profile.sample_count.toLocaleString("en")} times${left}. `,
        top ? ["Mostly in ", h("b", {}, shortName(top.function)), ` (${percent(100 * top.share, 0)}).`] : null,
      ),
      flame.element,
      h("p", {}, h("button", { type: "button", on: { click: () => this.save(step) } }, "Save for speedscope")),
    ];
  }
}

function saveFile(name, document_) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(document_)], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function now({ now: { taken_at: at, stacks } }) {
  return [
    h("p", { class: "quiet" }, "At ", time(at), ":"),
    stacks.length ? null : h("p", { class: "quiet" }, "None of its threads is in Python code."),
    stacks.slice(0, MAX_STACKS).map(({ frames, count }) =>
      h(
        "ol",
        { class: "stack", reversed: true, tabindex: 0, "aria-label": "Stack, innermost first" },
        [...frames]
          .reverse()
          .map((frame, i) => h("li", { class: i ? null : "innermost" }, frame, !i && count > 1 ? ` ×${count}` : "")),
      ),
    ),
    stacks.length > MAX_STACKS ? h("p", { class: "quiet" }, `and ${stacks.length - MAX_STACKS} more`) : null,
  ];
}
