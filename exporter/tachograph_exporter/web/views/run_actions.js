// What can be done with a run: cancel it, run its workflow again, and show it to a colleague.

import { post } from "../api.js";
import { buttons, confirmed, dialog } from "../dialog.js";
import { h } from "../dom.js";

/** Buttons for a run. `announce(text)` says what happened, `showError(error)` what did not; `navigate(address)` opens. */
export function runActions(run, { isRunnable, announce, showError, navigate }) {
  const path = `api/workflows/executions/${encodeURIComponent(run.id)}`;
  const cancel = action("Cancel", "Cancel this run", async () => {
    if (!(await confirmed("Cancel this run?", "Its running steps are stopped.", "Cancel the run"))) return;
    await post(`${path}/cancel`);
    announce("The run is being cancelled.");
  });
  const again = action("Run again", "Run this workflow again, with the same inputs", async () => {
    const inputs = await askForInputs(run.timeline.input_summary ?? {});
    if (inputs === null) return;
    const started = await post(`api/workflows/${encodeURIComponent(run.timeline.workflow_id)}/execute`, {
      input_variables: inputs,
    });
    navigate(`#/executions/${started.execution_id}`);
  });
  const link = action("Copy link", "Copy a link to what is shown: this step, this part of the time", async () => {
    await navigator.clipboard?.writeText(location.href);
    announce("The link was copied.");
    link.textContent = "Copied";
    setTimeout(() => (link.textContent = "Copy link"), 1500);
  });

  function action(text, title, work) {
    const button = h("button", { type: "button", title, on: { click: perform } }, text);
    async function perform() {
      button.disabled = true;
      try {
        await work();
      } catch (problem) {
        showError(problem);
      } finally {
        button.disabled = false;
      }
    }
    return button;
  }

  return {
    element: h("span", { class: "actions" }, cancel, again, link),
    /** Show what is possible now. */
    update() {
      cancel.hidden = !run.isOpen;
      again.hidden = run.isOpen || !isRunnable();
    },
  };
}

/** Ask for inputs, as JSON; resolves to them, or to null. */
function askForInputs(inputs) {
  return new Promise((resolve) => {
    const text = h("textarea", { id: "inputs", rows: 8, spellcheck: "false" }, JSON.stringify(inputs, null, 2));
    const fault = h("p", { class: "error-text", role: "alert" });
    const form = h(
      "form",
      { method: "dialog" },
      h("label", { for: "inputs" }, "Inputs, as JSON"),
      text,
      h("p", { class: "quiet" }, "Long and secret inputs were shortened when they were recorded: complete them."),
      fault,
      buttons("Run"),
    );
    const element = dialog("Run again", form);
    form.addEventListener("submit", (event) => {
      if (event.submitter?.value !== "yes") return;
      try {
        const value = JSON.parse(text.value || "{}");
        if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error("expected an object");
      } catch (error) {
        event.preventDefault();
        fault.textContent = `Not valid: ${error.message}`;
      }
    });
    element.addEventListener("close", () => {
      element.remove();
      resolve(element.returnValue === "yes" ? JSON.parse(text.value || "{}") : null);
    });
  });
}
