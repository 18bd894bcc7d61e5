// On paper nothing scrolls: the timeline is printed as a picture of all rows, in light colours.

import { palette } from "../drawing/palette.js";
import { drawPicture } from "../drawing/picture.js";
import { SvgPainter } from "../drawing/svg_painter.js";
import { h } from "../dom.js";
import { duration } from "../format.js";
import { now } from "../now.js";

const MAX_ROWS = 400;
const WIDTH = 1100;

/** Show all of the run of a view while it is printed. */
export function printWhole(view) {
  const root = document.documentElement;
  let picture = null;
  let theme;
  window.addEventListener("beforeprint", () => {
    if (picture) return;
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    picture = pictureOf(view);
    view.box.after(picture);
  });
  window.addEventListener("afterprint", () => {
    picture?.remove();
    picture = null;
    if (theme === undefined) delete root.dataset.theme;
    else root.dataset.theme = theme;
  });
}

function pictureOf({ run, timeline }) {
  const painter = new SvgPainter();
  const rows = timeline.rows.slice(0, MAX_ROWS);
  const title = `${run.timeline.workflow_name} ${run.status} · ${duration(run.length() / 1000)}`;
  drawPicture(painter, palette(), run, rows, { width: WIDTH, now: now(), title });
  const left = timeline.rows.length - rows.length;
  return h(
    "figure",
    { class: "printed" },
    painter.root,
    left > 0 ? h("figcaption", {}, `and ${left.toLocaleString("en")} more steps`) : null,
  );
}
