// Files of a run that users can save: its timeline in several formats, and pictures of it.

import { get } from "../api.js";
import { h } from "../dom.js";
import { CanvasPainter } from "../drawing/canvas_painter.js";
import { palette } from "../drawing/palette.js";
import { drawPicture } from "../drawing/picture.js";
import { SvgPainter } from "../drawing/svg_painter.js";
import { duration } from "../format.js";
import { now } from "../now.js";

const MAX_PICTURE_ROWS = 2_000;
const PICTURE_WIDTH = 1600;

/**
 * A menu that saves a run. `path` is the run's in the API, `rows()` are the steps to draw, in order. What users should
 * know goes to `announce(text)`, errors to `showError(error)`. `isSaved`: the page is a report, without a service that
 * makes other formats.
 */
export function downloadMenu(run, path, { rows, announce, showError, isSaved = false }) {
  const byService = {
    Report: () => saveReport(run, path),
    "Chrome trace": () => saveDocument(run, path, "trace.json", { format: "chrome" }),
    OTLP: () => saveDocument(run, path, "otlp.json", { format: "otlp" }),
  };
  const items = {
    JSON: () => saveDocument(run, path, "json", {}),
    ...(isSaved ? {} : byService),
    SVG: () => saveSvg(run, rows(), announce),
    PNG: () => savePng(run, rows(), announce),
  };
  const saveAs = async (name, save) => {
    try {
      await save();
    } catch (problem) {
      showError(new Error(`The run could not be saved as ${name}: ${problem.message}`));
    }
  };
  const button = ([name, save]) =>
    h(
      "button",
      {
        type: "button",
        on: {
          click: () => {
            menu.open = false;
            saveAs(name, save);
          },
        },
      },
      name,
    );
  const menu = h(
    "details",
    { class: "menu" },
    h("summary", {}, "Save"),
    h("div", { class: "items" }, Object.entries(items).map(button)),
  );
  menu.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
  return menu;
}

async function saveDocument(run, path, extension, query) {
  const body = await get(`${path}/timeline`, query);
  saveFile(run, extension, new Blob([JSON.stringify(body)], { type: "application/json" }));
}

/** The run as one file that opens without the service. */
async function saveReport(run, path) {
  saveFile(run, "html", new Blob([await get(`${path}/report`)], { type: "text/html" }));
}

function saveFile(run, extension, blob) {
  const link = h("a", {
    href: URL.createObjectURL(blob),
    download: `${run.timeline.workflow_name.replace(/[^\w.-]+/g, "_")}-${run.id.slice(0, 8)}.${extension}`,
  });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function draw(painter, run, steps, announce) {
  if (steps.length > MAX_PICTURE_ROWS) {
    announce(`The picture shows the first ${MAX_PICTURE_ROWS} of ${steps.length} rows.`);
  }
  const { timeline } = run;
  const title = `${timeline.workflow_name} ${run.status} · ${duration(run.length() / 1000)} · ${timeline.started_at ?? ""} · ${run.id}`;
  const options = { width: PICTURE_WIDTH, now: now(), title };
  drawPicture(painter, palette(), run, steps.slice(0, MAX_PICTURE_ROWS), options);
}

function saveSvg(run, steps, announce) {
  const painter = new SvgPainter();
  draw(painter, run, steps, announce);
  saveFile(run, "svg", new Blob([String(painter)], { type: "image/svg+xml" }));
}

async function savePng(run, steps, announce) {
  const canvas = document.createElement("canvas");
  draw(new CanvasPainter(canvas), run, steps, announce);
  const blob = await new Promise((resolve) => {
    canvas.toBlob(resolve, "image/png");
  });
  if (!blob) throw new Error("the picture is too large for this browser");
  saveFile(run, "png", blob);
}
