// The page's entry point: chooses the view that the address names, and offers views what they share.

import { get, session } from "./api.js";
import { h, replace, setText } from "./dom.js";
import { watchHealth } from "./health.js";
import { listenForShortcuts, showHelp } from "./keyboard.js";
import { initTheme, toggleTheme } from "./theme.js";
import { RunView } from "./views/run.js";
import { RunsView } from "./views/runs.js";
import { WorkflowView } from "./views/workflow.js";
import { WorkflowsView } from "./views/workflows.js";

const WORKSPACE_KEY = "tachograph.workspace";

const main = document.getElementById("main");
const announcements = document.getElementById("announcements");
const connection = document.getElementById("connection");

const app = {
  /** What `api/about` says of the service. */
  about: {},
  view: null,

  /** Announce a text to screen readers. */
  announce(text) {
    announcements.textContent = text;
  },

  /** Show the state of the event stream: "live", "waiting" or "" (no stream). */
  setConnection(state) {
    if (connection.dataset.state === state) return;
    connection.dataset.state = state;
    setText(connection, state === "live" ? "live" : state === "waiting" ? "reconnecting…" : "");
    connection.title =
      state === "live"
        ? "Events arrive as they happen"
        : state === "waiting"
          ? "The service does not answer; reconnecting"
          : "";
  },

  /** Show an error for a few seconds. */
  showError(problem) {
    if (problem.name === "AbortError") return;
    const message = h("p", { class: "error-text", role: "alert" }, problem.message);
    main.prepend(message);
    setTimeout(() => message.remove(), 8000);
  },

  navigate(address) {
    location.hash = address;
  },

  /** Store parameters in the address, without adding to the browser's history. */
  setParameters(values) {
    const { path, parameters } = parseAddress();
    for (const [name, value] of Object.entries(values)) {
      if (value === null || value === "" || value === undefined) parameters.delete(name);
      else parameters.set(name, value);
    }
    const query = parameters.toString();
    history.replaceState(null, "", `#${path}${query ? `?${query}` : ""}`);
  },
};

function parseAddress() {
  const [path, query] = (location.hash.slice(1) || "/").split("?");
  return { path, parameters: new URLSearchParams(query) };
}

function createView(path, parameters) {
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  if (parts[0] === "executions" && parts[1]) return new RunView(app, parts[1], parameters);
  if (parts[0] === "workflows" && parts[1]) return new WorkflowView(app, parts[1], parameters);
  if (parts[0] === "workflows") return new WorkflowsView(app);
  return new RunsView(app, parameters);
}

async function route() {
  const { path, parameters } = parseAddress();
  app.view?.close();
  app.setConnection("");
  const view = createView(path, parameters);
  app.view = view;
  replace(main, view.element);
  for (const link of document.querySelectorAll("nav.main a")) {
    const isCurrent = link.getAttribute("href") === (path.startsWith("/workflows") ? "#/workflows" : "#/");
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    await view.open();
  } catch (problem) {
    if (app.view !== view) return;
    replace(
      view.element,
      h("h1", { tabindex: -1 }, problem.status === 404 ? "Not found" : "Something went wrong"),
      h("p", { class: "error-text", role: "alert" }, problem.message),
      h("p", {}, h("a", { href: "#/" }, "All runs")),
    );
  }
  if (app.view === view && document.activeElement === document.body)
    view.element.querySelector("h1")?.focus({ preventScroll: true });
}

function recolour() {
  app.view?.recolour();
}

function switchTheme() {
  toggleTheme();
  recolour();
}

async function start() {
  initTheme(recolour);
  document.getElementById("theme").addEventListener("click", switchTheme);
  document.getElementById("help").addEventListener("click", showHelp);
  listenForShortcuts({ navigate: app.navigate, currentView: () => app.view, toggleTheme: switchTheme });
  session.workspace =
    new URLSearchParams(location.search).get("workspace") ?? sessionStorage.getItem(WORKSPACE_KEY) ?? "";
  try {
    app.about = await get("api/about");
  } catch {
    app.about = {};
  }
  showWorkspaces();
  watchHealth(document.getElementById("health"));
  window.addEventListener("hashchange", route);
  await route();
}

async function showWorkspaces() {
  let items = [];
  try {
    ({ items } = await get("api/workspaces"));
  } catch {
    // A token limited to one workspace may not list workspaces.
  }
  if (items.length < 2) return;
  const current = session.workspace || app.about.workspace;
  const select = h(
    "select",
    {
      id: "workspace",
      on: {
        change: () => {
          session.workspace = select.value;
          sessionStorage.setItem(WORKSPACE_KEY, select.value);
          if (location.hash === "#/" || location.hash === "") route();
          else app.navigate("#/");
        },
      },
    },
    items.map(({ slug }) => h("option", { value: slug, selected: slug === current }, slug)),
  );
  document
    .getElementById("workspaces")
    .append(h("label", { class: "choice", for: "workspace" }, h("span", { class: "quiet" }, "Workspace"), select));
}

start();
