// The colours of drawings, read from the page's style sheet.

const STATUS_COLOURS = [
  "completed",
  "failed",
  "running",
  "retrying",
  "skipped",
  "cancelled",
  "timeout",
  "lost",
  "pending",
];
const COLOUR_NAMES = [...STATUS_COLOURS, "text", "quiet", "line", "paper", "raised", "critical", "wait", "accent"];

/** The page's CSS colours by name, resolved for the current theme. */
export function palette() {
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const colours = {};
  for (const name of COLOUR_NAMES) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return colours;
}
