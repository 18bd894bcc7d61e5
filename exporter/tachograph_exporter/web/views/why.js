// Why a run was slow or failed: claims with their certainty, each with a link to its evidence.

import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { percent } from "../format.js";

const SYMBOLS = { certain: "●", likely: "◐", "not known": "○" };
const MAX_DIFFERENCES = 12;

export class Why {
  /** `select(step name)` shows a step of the run; it returns whether there is one. */
  constructor(id, { select }) {
    this.id = id;
    this.select = select;
    this.element = h("section", { class: "explanation", hidden: true, "aria-label": "Why" });
  }

  /** The answer, to be shown; null if there is none: the run is shown without. */
  async read() {
    try {
      return await get(`api/workflows/executions/${encodeURIComponent(this.id)}/why`);
    } catch {
      return null;
    }
  }

  show(answer) {
    if (!answer) return;
    // Its first claim is the sentence above.
    const rest = answer.claims.slice(1);
    const isOpen = answer.verdict === "running" || answer.verdict === "pending";
    this.element.hidden = isOpen ? !answer.causes.length : !answer.causes.length && !rest.length;
    if (this.element.hidden) return;
    this.workflow = encodeURIComponent(answer.workflow_id);
    this.differences = answer.differences.length ? differing(answer.differences) : null;
    replace(
      this.element,
      h("h2", {}, isOpen ? "What it waits for" : "Why"),
      h(
        "ol",
        {},
        answer.causes.map((claim) => this.claim(claim)),
      ),
      !isOpen && rest.length
        ? h(
            "ul",
            {},
            rest.map((claim) => this.claim(claim)),
          )
        : null,
      this.differences,
      answer.sample.run_count
        ? h(
            "p",
            { class: "quiet" },
            `${answer.sample.run_count} runs compared${answer.sample.tested ? `, ${answer.sample.tested} values of them` : ""}. `,
            Object.entries(SYMBOLS).map(([certainty, symbol]) => `${symbol} ${certainty}  `),
          )
        : null,
    );
  }

  claim(claim) {
    return h(
      "li",
      { data: { certainty: claim.certainty, kind: claim.kind } },
      h("span", { class: "certainty", role: "img", "aria-label": claim.certainty, title: claim.certainty }, [
        SYMBOLS[claim.certainty],
      ]),
      " ",
      claim.text,
      " ",
      this.link(claim),
    );
  }

  /** A link to what a claim rests on: another run, a step of this one, a comparison, a list, or the differences. */
  link({ evidence }) {
    const { execution_id: other, child_execution_id: child, first_execution_id: first, step } = evidence.values;
    const run = child ?? other ?? first;
    const path = evidence.url.split("?")[0];
    const group = evidence.values.failure_group;
    if (group) return h("a", { href: `#/failures/${encodeURIComponent(group)}` }, "this cause over time");
    if (run && run !== this.id) return h("a", { href: `#/executions/${encodeURIComponent(run)}` }, "the run");
    if (path.endsWith("/compare")) return h("a", { href: `#/workflows/${this.workflow}?a=${this.id}` }, "comparison");
    if (path.endsWith("/trends")) return h("a", { href: `#/workflows/${this.workflow}` }, "trend");
    if (path.endsWith("/executions")) return h("a", { href: `#/?workflow=${this.workflow}&status=failed` }, "the runs");
    if (step && this.select(step, { isTest: true })) return jump("the step", () => this.select(step));
    if (evidence.values.key && this.differences) return jump("the figures", () => this.showDifferences());
    return null;
  }

  showDifferences() {
    this.differences.open = true;
    this.differences.scrollIntoView({ block: "nearest" });
  }
}

function jump(text, click) {
  return h("button", { type: "button", class: "link", on: { click } }, text);
}

function differing(differences) {
  return h(
    "details",
    {},
    h("summary", {}, `What differs (${differences.length})`),
    h(
      "ul",
      {},
      differences
        .slice(0, MAX_DIFFERENCES)
        .map((difference) =>
          h(
            "li",
            {},
            difference.text,
            " ",
            h("span", { class: "quiet" }, `splits ${percent(100 * difference.effect, 0)}`),
          ),
        ),
    ),
  );
}
