// A picture of a whole run, to be saved as SVG or PNG.

import { drawAxis } from "./axis.js";
import { fitText } from "./fit_text.js";
import { drawRow, ROW_HEIGHT } from "./gantt.js";

/** Draw a whole run, with the names of its steps. Returns the size in pixels. */
export function drawPicture(painter, colours, run, steps, { width, now, title }) {
  const names = Math.min(360, 24 + Math.max(80, ...steps.map((step) => painter.measure(step.name))));
  const height = 64 + steps.length * ROW_HEIGHT + 12;
  painter.begin(width, height, 2);
  painter.rect(0, 0, width, height, colours.paper);
  painter.text(12, 20, title, colours.text, { bold: true, size: 14 });
  const total = Math.max(1, run.length(now));
  const right = width - 12;
  const x = (at) => names + (at / total) * (right - names - 90);
  drawAxis(painter, colours, {
    x,
    from: 0,
    to: total,
    left: names,
    width: right - names,
    height: height - 8,
    top: 58,
    labels: 48,
  });
  steps.forEach((step, index) => {
    const y = 64 + index * ROW_HEIGHT;
    const mark = step.isCritical ? "◆ " : "";
    painter.text(
      12,
      y + ROW_HEIGHT / 2,
      fitText(painter, mark + step.name, names - 24),
      step.isCritical ? colours.critical : colours.text,
    );
    drawRow(painter, colours, run, step, { x, y, now, left: names, right, isSelected: false });
  });
  return { width, height };
}
