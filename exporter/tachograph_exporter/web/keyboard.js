// Keyboard shortcuts that work on every view, and the dialog that lists all shortcuts.

import { h } from "./dom.js";

const SHORTCUTS = [
  ["/", "search ids, workflows and errors"],
  ["?", "show this help"],
  ["g r", "go to runs"],
  ["g f", "go to failures"],
  ["g n", "go to the night"],
  ["g w", "go to workflows"],
  ["g o", "go to notices"],
  ["↑ ↓", "previous, next row"],
  ["Enter", "open; in a timeline, zoom to the step"],
  ["← →", "earlier, later (timeline); previous, next run (night)"],
  ["+ − 0", "zoom in, zoom out, fit"],
  ["c  C", "next, previous step on the critical path"],
  ["f", "next failed step; what went wrong next (night)"],
  ["Esc", "close"],
  ["t", "switch between dark and light"],
  ["z", "switch between your zone and UTC"],
];

/** Listen for shortcuts. `navigate(address)` opens a view; without it, there is only the one that `currentView()` returns. */
export function listenForShortcuts({ navigate, search, currentView, toggleTheme, switchZone }) {
  let previous = "";
  document.addEventListener("keydown", (event) => {
    const { target } = event;
    const isTyping = target.matches?.("input:not([type=checkbox]), select, textarea");
    if (event.key === "Escape" && isTyping) {
      target.blur();
      return;
    }
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const sequence = previous + event.key;
    previous = event.key === "g" ? "g" : "";
    const actions = {
      "/": search,
      "?": () => showHelp({ isAlone: !navigate }),
      t: toggleTheme,
      z: switchZone,
      ...(navigate ? places(navigate) : {}),
      ArrowDown: () =>
        target === document.body || target.matches?.("h1")
          ? (currentView()?.first?.() ?? document.getElementById("steps")?.focus())
          : null,
    };
    const action = actions[sequence] ?? actions[event.key];
    if (!action) return;
    if (event.key !== "ArrowDown") event.preventDefault();
    action();
  });
}

function places(navigate) {
  return {
    gr: () => navigate("#/"),
    gf: () => navigate("#/failures"),
    gn: () => navigate("#/night"),
    gw: () => navigate("#/workflows"),
    go: () => navigate("#/notices"),
  };
}

/** Show the list of shortcuts. `isAlone`: there is only one view to go to. */
export function showHelp({ isAlone = false } = {}) {
  const shortcuts = SHORTCUTS.filter(([keys]) => !isAlone || !keys.startsWith("g "));
  const dialog = h(
    "dialog",
    { class: "help", "aria-label": "Keyboard shortcuts" },
    h("h2", {}, "Keyboard shortcuts"),
    h(
      "dl",
      { class: "pairs" },
      shortcuts.map(([keys, meaning]) => [
        h(
          "dt",
          {},
          keys.split(" ").map((key) => (key ? [h("kbd", {}, key), " "] : null)),
        ),
        h("dd", {}, meaning),
      ]),
    ),
    h("form", { method: "dialog" }, h("button", { class: "primary" }, "Close")),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
