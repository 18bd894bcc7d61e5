// Dialogs: a title, a form, and what the button says.

import { h } from "./dom.js";

/** Show a dialog with a form; `element.returnValue` is "yes" when it was agreed to. It is closed by the caller. */
export function dialog(title, ...content) {
  const element = h("dialog", { "aria-label": title }, h("h2", {}, title), content);
  document.body.append(element);
  element.showModal();
  return element;
}

/** The buttons of a dialog's form: one that agrees, and one that goes back. */
export function buttons(text) {
  return h(
    "p",
    { class: "actions" },
    h("button", { type: "submit", class: "primary", value: "yes" }, text),
    h("button", { type: "submit", value: "", formnovalidate: true }, "Back"),
  );
}

/** Ask; resolves to whether the answer was yes. */
export function confirmed(title, text, yes) {
  return new Promise((resolve) => {
    const element = dialog(title, h("p", {}, text), h("form", { method: "dialog" }, buttons(yes)));
    element.addEventListener("close", () => {
      element.remove();
      resolve(element.returnValue === "yes");
    });
  });
}

/** A form in a dialog: `fields` are elements, `save()` does it. What is refused is shown, and the form stays open.
 *  Resolves to whether it was done. */
export function askForm(title, text, yes, fields, save) {
  return new Promise((resolve) => {
    const error = h("p", { class: "error-text", role: "alert", hidden: true });
    const form = h("form", { method: "dialog" }, h("div", { class: "form" }, fields), error, buttons(yes));
    const element = dialog(title, text ? h("p", { class: "quiet" }, text) : null, form);
    let isDone = false;
    form.addEventListener("submit", async (event) => {
      if (event.submitter?.value !== "yes") return;
      event.preventDefault();
      event.submitter.disabled = true;
      try {
        await save();
        isDone = true;
        element.close();
      } catch (problem) {
        error.hidden = false;
        error.textContent = problem.errors?.length ? problem.errors.join("\n") : problem.message;
      } finally {
        event.submitter.disabled = false;
      }
    });
    element.addEventListener("close", () => {
      element.remove();
      resolve(isDone);
    });
  });
}

/** A row of such a form: a label, its control, and a hint. */
export function field(label, control, hint = "") {
  control.id ||= `field-${label.toLowerCase().replaceAll(/\W+/g, "-")}`;
  return [
    h("label", { for: control.id }, label),
    control,
    hint ? h("p", { class: "hint", id: `${control.id}-hint` }, hint) : null,
  ];
}
