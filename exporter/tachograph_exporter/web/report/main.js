// The entry point of a report: one run, with everything about it in the file. Modules that would ask the service are
// replaced by those beside this one; see the list in `tachograph_exporter/report_file/scripts.py`.

import { h, replace, setText } from "../dom.js";
import { listenForShortcuts, showHelp } from "../keyboard.js";
import { initTheme, toggleTheme } from "../theme.js";
import { refreshTimes, time, toggleZone, zone } from "../times.js";
import { RunView } from "../views/run.js";
import { open } from "./contents.js";
import { keepLinksInside } from "./links.js";
import { linesOf } from "./lines.js";
import { printWhole } from "./printing.js";

const main = document.getElementById("main");
const announcements = document.getElementById("announcements");

const app = {
  isSaved: true,
  about: {},
  announce: (text) => setText(announcements, text),
  setConnection() {},
  showError(problem) {
    const message = h("p", { class: "error-text", role: "alert" }, problem.message);
    main.prepend(message);
    setTimeout(() => message.remove(), 8000);
  },
  navigate() {},
  // The address of a file in a mail or a frame says nothing.
  setParameters() {},
};

async function start() {
  const contents = await open(document.getElementById("contents").textContent);
  app.about = { trace_url: contents.trace_url };
  const view = new RunView(app, contents.timeline.execution_id, new URLSearchParams());
  const recolour = () => view.recolour();
  const switchTheme = () => {
    toggleTheme();
    recolour();
  };
  const switchZone = () => {
    toggleZone();
    showZone();
    recolour();
  };
  initTheme(recolour);
  keepLinksInside(main, contents.address);
  replace(main, view.element);
  await view.open();
  view.element.prepend(madeAt(contents));
  const lines = linesOf(contents, (id) => view.timeline.select(view.run.byId.get(id)));
  if (lines) view.element.append(lines);
  printWhole(view);
  document.getElementById("theme").addEventListener("click", switchTheme);
  document.getElementById("help").addEventListener("click", () => showHelp({ isAlone: true }));
  document.getElementById("zone").addEventListener("click", switchZone);
  document.querySelector("header.bar").hidden = false;
  showZone();
  setInterval(refreshTimes, 10_000);
  listenForShortcuts({
    search: () => view.search(),
    currentView: () => view,
    toggleTheme: switchTheme,
    switchZone,
  });
  document.documentElement.dataset.ready = "1";
}

/** When the report was made, of which run, and what is not in it. */
function madeAt({ made_at: at, version, address, timeline, omitted }) {
  const page = address
    ? h("a", { href: `${address}/#/executions/${encodeURIComponent(timeline.execution_id)}` }, "the page")
    : null;
  return h(
    "div",
    { class: "made" },
    h(
      "p",
      { class: "quiet" },
      `Report by Tachograph ${version}, as of `,
      time(at, "both"),
      page ? [". Now: ", page] : null,
    ),
    omitted.map((text) => h("p", { class: "omitted" }, text)),
  );
}

function showZone() {
  const button = document.getElementById("zone");
  setText(button, zone());
  button.setAttribute("aria-label", `Times are in ${zone()}; switch between your zone and UTC`);
}

start().catch((error) => {
  const message = "This browser cannot show the whole report: it needs Chrome 123, Firefox 120, Safari 17.5 or newer.";
  main.prepend(h("p", { class: "error-text", role: "alert" }, `${message} (${error.message})`));
});
