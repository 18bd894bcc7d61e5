// The page's entry point: chooses the view that the address names, and offers views what they share.

import { get, session } from "./api.js";
import { h, replace, setText } from "./dom.js";
import { watchHealth } from "./health.js";
import { listenForShortcuts, showHelp } from "./keyboard.js";
import { onReach } from "./reach.js";
import { initTheme, toggleTheme } from "./theme.js";
import { refreshTimes, shortClock, toggleZone, zone } from "./times.js";
import { FailureView } from "./views/failure.js";
import { FailuresView } from "./views/failures.js";
import { NightView } from "./views/night.js";
import { NoticesView } from "./views/notices.js";
import { RunView } from "./views/run.js";
import { RunsView } from "./views/runs.js";
import { WorkflowView } from "./views/workflow.js";
import { WorkflowsView } from "./views/workflows.js";

const WORKSPACE_KEY = "tachograph.workspace";
const SECTIONS = ["night", "failures", "workflows", "notices"];

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

  /** Store parameters in the address; with `isStep`, as a step that the browser's Back undoes. */
  setParameters(values, { isStep = false } = {}) {
    const { path, parameters } = parseAddress();
    for (const [name, value] of Object.entries(values)) {
      if (value === null || value === "" || value === undefined) parameters.delete(name);
      else parameters.set(name, value);
    }
    const query = parameters.toString();
    const address = `#${path}${query ? `?${query}` : ""}`;
    if (address === location.hash || (address === "#/" && !location.hash)) return;
    if (isStep) history.pushState(null, "", address);
    else history.replaceState(history.state, "", address);
  },

  /** Keep values with this entry of the browser's history: what Back shows again. */
  remember(values) {
    history.replaceState({ ...history.state, ...values }, "");
  },

  /** What was kept with this entry of the history. */
  get remembered() {
    return history.state ?? {};
  },
};

function parseAddress() {
  const [path, query] = (location.hash.slice(1) || "/").split("?");
  return { path, parameters: new URLSearchParams(query) };
}

function createView(path, parameters) {
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  if (parts[0] === "executions" && parts[1]) return new RunView(app, parts[1], parameters);
  if (parts[0] === "failures" && parts[1]) return new FailureView(app, parts[1], parameters);
  if (parts[0] === "failures") return new FailuresView(app, parameters);
  if (parts[0] === "workflows" && parts[1]) return new WorkflowView(app, parts[1], parameters);
  if (parts[0] === "workflows") return new WorkflowsView(app, parameters);
  if (parts[0] === "night") return new NightView(app, parameters);
  if (parts[0] === "notices") return new NoticesView(app, parameters);
  return new RunsView(app, parameters);
}

async function route() {
  const { path, parameters } = parseAddress();
  app.view?.close();
  app.setConnection("");
  const view = createView(path, parameters);
  app.view = view;
  const { scroll = 0 } = app.remembered;
  replace(main, view.element);
  for (const link of document.querySelectorAll("nav.main a")) {
    const room = SECTIONS.find((name) => path.startsWith(`/${name}`)) ?? "";
    const isCurrent = link.getAttribute("href") === `#/${room}`;
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    await view.open();
  } catch (problem) {
    if (app.view !== view) return;
    showFailure(view, problem);
  }
  if (app.view === view) window.scrollTo(0, scroll);
  if (app.view === view && document.activeElement === document.body)
    view.element.querySelector("h1")?.focus({ preventScroll: true });
}

/** Say why a view cannot be shown, and what to do; it is opened again once the service answers. */
function showFailure(view, problem) {
  const isMissing = problem.status === 404;
  const hint = isMissing
    ? "It may have been deleted, or belong to another workspace."
    : problem.status === 0
      ? "This page opens by itself once the service answers."
      : "Reload the page to try again. If it stays like this, the log of `tachograph serve` says why.";
  replace(
    view.element,
    h(
      "h1",
      { tabindex: -1 },
      isMissing ? "Not found" : problem.status === 0 ? "Not reachable" : "Something went wrong",
    ),
    h("p", { class: "error-text", role: "alert" }, problem.message),
    h("p", { class: "quiet" }, hint),
    h("p", {}, h("a", { href: "#/" }, "All runs")),
  );
  if (problem.status !== 0) return;
  const retry = setInterval(() => {
    if (app.view !== view) clearInterval(retry);
    else
      get("api/about").then(
        () => app.view === view && (clearInterval(retry), route()),
        () => {},
      );
  }, 2000);
}

function showReach(since) {
  const banner = document.getElementById("reach");
  banner.hidden = since === null;
  setText(
    banner,
    since === null ? "" : `Not reachable since ${shortClock(since)}, showing what was known. Trying again.`,
  );
}

function showZone() {
  const button = document.getElementById("zone");
  setText(button, zone());
  button.setAttribute("aria-label", `Times are in ${zone()}; switch between your zone and UTC`);
}

function switchZone() {
  toggleZone();
  showZone();
  recolour();
}

/** Focus the search of this view, or of the list of runs. */
function search() {
  if (app.view?.search()) return;
  app.navigate("#/?search");
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
  document.getElementById("help").addEventListener("click", () => showHelp());
  document.getElementById("zone").addEventListener("click", switchZone);
  showZone();
  setInterval(refreshTimes, 10_000);
  onReach(showReach);
  history.scrollRestoration = "manual";
  listenForShortcuts({
    navigate: app.navigate,
    search,
    currentView: () => app.view,
    toggleTheme: switchTheme,
    switchZone,
  });
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
