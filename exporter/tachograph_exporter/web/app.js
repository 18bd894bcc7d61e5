// The page: which view the address names, keys, theme, and what all views share.

import { get, session } from "./api.js";
import { h, replace, say } from "./dom.js";
import { RunView } from "./run.js";
import { RunsView } from "./runs.js";
import { WorkflowsView, WorkflowView } from "./workflow.js";

const THEME = "tachograph.theme";
const WORKSPACE = "tachograph.workspace";
const KEYS = [
  ["/", "search"],
  ["?", "this help"],
  ["g r", "runs"],
  ["g w", "workflows"],
  ["↑ ↓", "row by row"],
  ["Enter", "open; in a timeline, zoom to the step"],
  ["← →", "earlier, later (timeline)"],
  ["+ − 0", "zoom in, out, whole"],
  ["c  C", "next, previous step on the critical path"],
  ["f", "next failed step"],
  ["Esc", "close what is open"],
  ["t", "dark or light"],
];

const main = document.getElementById("main");
const live = document.getElementById("live");
const link = document.getElementById("connection");

const app = {
  about: {},
  view: null,

  /** Say something to those who listen to the page. */
  announce(text) {
    live.textContent = text;
  },

  connection(state) {
    if (link.dataset.state === state) return;
    link.dataset.state = state;
    say(link, state === "live" ? "live" : state === "waiting" ? "reconnecting…" : "");
    link.title =
      state === "live"
        ? "Events arrive as they happen"
        : state === "waiting"
          ? "The service does not answer; trying again"
          : "";
  },

  failed(problem) {
    if (problem.name === "AbortError") return;
    const box = h("p", { class: "trouble", role: "alert" }, problem.message);
    main.prepend(box);
    setTimeout(() => box.remove(), 8000);
  },

  go(address) {
    location.hash = address;
  },

  /** Keep what is chosen in the address, without a step in the history. */
  keep(values) {
    const { path, parameters } = read();
    for (const [name, value] of Object.entries(values)) {
      if (value === null || value === "" || value === undefined) parameters.delete(name);
      else parameters.set(name, value);
    }
    const query = parameters.toString();
    history.replaceState(null, "", `#${path}${query ? `?${query}` : ""}`);
  },
};

function read() {
  const [path, query] = (location.hash.slice(1) || "/").split("?");
  return { path, parameters: new URLSearchParams(query) };
}

function viewOf(path, parameters) {
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  if (parts[0] === "executions" && parts[1]) return new RunView(app, parts[1], parameters);
  if (parts[0] === "workflows" && parts[1]) return new WorkflowView(app, parts[1], parameters);
  if (parts[0] === "workflows") return new WorkflowsView(app);
  return new RunsView(app, parameters);
}

async function route() {
  const { path, parameters } = read();
  app.view?.close();
  app.connection("");
  const view = viewOf(path, parameters);
  app.view = view;
  replace(main, view.element);
  for (const one of document.querySelectorAll("nav.main a")) {
    const isHere = one.getAttribute("href") === (path.startsWith("/workflows") ? "#/workflows" : "#/");
    if (isHere) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  try {
    await view.open();
  } catch (problem) {
    if (app.view !== view) return;
    replace(
      view.element,
      h("h1", { tabindex: -1 }, problem.status === 404 ? "Not here" : "It did not work"),
      h("p", { class: "trouble", role: "alert" }, problem.message),
      h("p", {}, h("a", { href: "#/" }, "All runs")),
    );
  }
  if (app.view === view && document.activeElement === document.body)
    view.element.querySelector("h1")?.focus({ preventScroll: true });
}

// --- keys

let before = "";

document.addEventListener("keydown", (event) => {
  const { target } = event;
  const isTyping = target.matches?.("input:not([type=checkbox]), select, textarea");
  if (event.key === "Escape" && isTyping) {
    target.blur();
    return;
  }
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const sequence = before + event.key;
  before = event.key === "g" ? "g" : "";
  const keys = {
    "/": () => app.view?.search(),
    "?": help,
    t: turnTheme,
    gr: () => app.go("#/"),
    gw: () => app.go("#/workflows"),
    ArrowDown: () =>
      target === document.body || target.matches?.("h1")
        ? (app.view?.first?.() ?? document.getElementById("steps")?.focus())
        : null,
  };
  const work = keys[sequence] ?? keys[event.key];
  if (!work) return;
  if (event.key !== "ArrowDown") event.preventDefault();
  work();
});

function help() {
  const dialog = h(
    "dialog",
    { class: "help", "aria-label": "Keys" },
    h("h2", {}, "Keys"),
    h(
      "dl",
      { class: "pairs" },
      KEYS.map(([keys, what]) => [
        h(
          "dt",
          {},
          keys.split(" ").map((key) => (key ? [h("kbd", {}, key), " "] : null)),
        ),
        h("dd", {}, what),
      ]),
    ),
    h("form", { method: "dialog" }, h("button", { class: "primary" }, "Close")),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

// --- theme and workspace

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function turnTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME, theme);
  app.view?.recolour();
}

async function start() {
  const theme = localStorage.getItem(THEME);
  if (theme) document.documentElement.dataset.theme = theme;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.view?.recolour());
  document.getElementById("theme").addEventListener("click", turnTheme);
  document.getElementById("help").addEventListener("click", help);
  session.workspace = new URLSearchParams(location.search).get("workspace") ?? sessionStorage.getItem(WORKSPACE) ?? "";
  try {
    app.about = await get("api/about");
  } catch {
    app.about = {};
  }
  workspaces();
  window.addEventListener("hashchange", route);
  await route();
}

async function workspaces() {
  let items = [];
  try {
    ({ items } = await get("api/workspaces"));
  } catch {
    // A token for one workspace may not list them.
  }
  if (items.length < 2) return;
  const here = session.workspace || app.about.workspace;
  const choice = h(
    "select",
    {
      id: "workspace",
      on: {
        change: () => {
          session.workspace = choice.value;
          sessionStorage.setItem(WORKSPACE, choice.value);
          if (location.hash === "#/" || location.hash === "") route();
          else app.go("#/");
        },
      },
    },
    items.map((one) => h("option", { value: one.slug, selected: one.slug === here }, one.slug)),
  );
  document
    .getElementById("workspaces")
    .append(h("label", { class: "choice", for: "workspace" }, h("span", { class: "quiet" }, "Workspace"), choice));
}

start();
