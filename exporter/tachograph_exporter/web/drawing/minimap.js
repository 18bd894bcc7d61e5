// The overview above a timeline.

/** Draw an overview of the run: running steps over time, failures, the critical path, the visible range (`view`). */
export function drawMinimap(painter, colours, run, { width, height, view, now }) {
  const total = Math.max(1, run.length(now));
  const columns = Math.max(1, Math.floor(width / 2));
  const running = new Int32Array(columns + 1);
  const failed = new Uint8Array(columns);
  const critical = new Uint8Array(columns);
  const column = (at) => Math.min(columns - 1, Math.max(0, Math.floor((at / total) * columns)));
  for (const step of run.steps) {
    if (step.start === null) continue;
    const [first, last] = [column(step.start), column(run.barEnd(step, now) ?? step.start)];
    running[first] += 1;
    running[last + 1] -= 1;
    if (step.status === "failed" || step.status === "timeout" || step.status === "lost") failed[last] = 1;
    if (step.isCritical) for (let i = first; i <= last; i += 1) critical[i] = 1;
  }
  let max = 1;
  for (let i = 0, count = 0; i < columns; i += 1) max = Math.max(max, (count += running[i]));
  const columnWidth = width / columns;
  const chartHeight = height - 8;
  let [count, barStart, criticalFrom] = [0, 0, 0];
  for (let i = 0; i <= columns; i += 1) {
    // Equal columns are one rectangle: no seams, fewer calls.
    if (i === columns || running[i]) {
      const barHeight = (count / max) * chartHeight;
      if (count && i > barStart)
        painter.rect(
          barStart * columnWidth,
          chartHeight - barHeight + 2,
          (i - barStart) * columnWidth,
          barHeight,
          colours.running,
          { alpha: 0.55 },
        );
      count += running[i];
      barStart = i;
    }
    if (i === columns || Boolean(critical[i]) !== Boolean(critical[i - 1])) {
      if (i > 0 && critical[i - 1])
        painter.rect(criticalFrom * columnWidth, height - 5, (i - criticalFrom) * columnWidth, 3, colours.critical);
      criticalFrom = i;
    }
  }
  for (let i = 0; i < columns; i += 1)
    if (failed[i]) painter.rect(i * columnWidth, 0, Math.max(2, columnWidth), height - 6, colours.failed);
  const [x1, x2] = [(view.from / total) * width, (view.to / total) * width];
  painter.rect(0, 0, Math.max(0, x1), height, colours.paper, { alpha: 0.65 });
  painter.rect(x2, 0, Math.max(0, width - x2), height, colours.paper, { alpha: 0.65 });
  painter.frame(Math.max(0.5, x1), 0.5, Math.min(width, x2) - Math.max(0, x1) - 1, height - 1, colours.accent);
}
