// Form controls.

import { h } from "./dom.js";

/** A button whose text is a symbol: `label` is its name and tooltip. */
export function button(text, label, work) {
  return h("button", { type: "button", "aria-label": label, title: label, on: { click: work } }, text);
}

/** A select with a visible label. `options` maps values to texts; `onChange(value)`. */
export function labelledSelect(label, options, value, onChange) {
  const element = h(
    "select",
    { "aria-label": label, on: { change: () => onChange(element.value) } },
    Object.entries(options).map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );
  return h("label", { class: "choice" }, h("span", { class: "quiet" }, label), element);
}

/** A fold that shows its content where `query` matches, or if `isOpen`; elsewhere behind `title`. */
export function foldUnless(query, title, isOpen, ...content) {
  const media = matchMedia(query);
  const fold = h("details", { class: "fold", open: media.matches || isOpen }, h("summary", {}, title), ...content);
  media.addEventListener("change", () => {
    if (media.matches) fold.open = true;
  });
  return fold;
}
