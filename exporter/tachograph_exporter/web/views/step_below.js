// What lies below the selected step: the time of the spans under it, by their names.

import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { duration } from "../format.js";

/** Shows what lies below one step after the other. `path` is the run's. */
export class StepBelow {
  constructor(path) {
    this.path = path;
    this.key = "";
    this.element = h("section", { class: "stepbelow", hidden: true });
  }

  async show(step) {
    const key = `${step.id} ${step.status}`;
    if (step.isExpected || this.key === key) return;
    if (!this.key.startsWith(`${step.id} `)) this.element.hidden = true;
    this.key = key;
    let below = [];
    try {
      const timeline = await get(`${this.path}/timeline`, { step: step.id, below: "true" });
      below = timeline.step_timeline.find((entry) => entry.step_id === step.id)?.below ?? [];
    } catch {
      // The step is shown without.
    }
    if (this.key === key) this.fill(below, step.entry.duration_seconds);
  }

  fill(below, seconds) {
    this.element.hidden = !below.length;
    replace(
      this.element,
      h("h3", {}, "Time below"),
      h(
        "ul",
        { class: "plain" },
        below.map((spans) =>
          h(
            "li",
            {},
            h("b", {}, duration(spans.seconds)),
            seconds ? h("span", { class: "quiet" }, ` of ${duration(seconds)} `) : " ",
            spans.name === null ? "others" : h("code", {}, spans.name),
            ` ×${spans.count.toLocaleString("en")}`,
            spans.elapsed_seconds !== null && spans.elapsed_seconds < spans.seconds * 0.99
              ? h("span", { class: "quiet" }, ` beside each other, within ${duration(spans.elapsed_seconds)}`)
              : null,
          ),
        ),
      ),
    );
  }

  close() {
    this.key = "";
  }
}
