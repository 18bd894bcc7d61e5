// What a step or a run used of the machine: processor time, memory, storage, pauses.

import { h } from "../dom.js";
import { duration, percent, size } from "../format.js";

/** The part of a step's panel that says so; null if nothing measured it. */
export function stepResources({ resources: use, run_seconds: ran, folded }) {
  if (folded?.resources) return averageOf(folded.resources);
  if (!use) return null;
  const pauses = use.gc_count
    ? `${use.gc_count.toLocaleString("en")} in ${duration(use.gc_seconds)}${use.gc_full_seconds ? `, full ones ${duration(use.gc_full_seconds)}` : ""}`
    : null;
  const switches =
    use.voluntary_switches === undefined
      ? null
      : `${use.voluntary_switches.toLocaleString("en")} to wait, ${use.involuntary_switches.toLocaleString("en")} because others ran`;
  const growth = use.memory_growth_bytes;
  const facts = [
    use.cpu_seconds === null ? null : ["Processor", processor(use, ran)],
    use.peak_memory_bytes === null
      ? null
      : [
          use.is_shared ? "Process memory" : "Peak memory",
          `${size(use.peak_memory_bytes)}${growth ? `, ${growth > 0 ? "+" : "−"}${size(Math.abs(growth))} since its start` : ""}`,
        ],
    use.read_bytes || use.written_bytes
      ? ["Storage", `${size(use.read_bytes)} read, ${size(use.written_bytes)} written`]
      : null,
    pauses ? [use.is_shared ? "Pauses of the process" : "Garbage collections", pauses] : null,
    switches ? ["Gave up a processor", switches] : null,
  ].filter(Boolean);
  if (!facts.length) return null;
  return [
    h("h3", {}, "Used of the machine"),
    bar(use, ran),
    h(
      "dl",
      { class: "pairs" },
      facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    ),
    use.is_shared ? h("p", { class: "quiet" }, "Other work ran in its process at the same time.") : null,
  ];
}

function processor(use, ran) {
  const share = ran > 0 ? ` (${percent((100 * use.cpu_seconds) / ran, 0)} of its time)` : "";
  return `${duration(use.cpu_seconds)}${share}`;
}

/** Busy against waiting. */
function bar(use, ran) {
  if (use.busy_seconds === undefined || !(ran > 0)) return null;
  const text = `busy ${duration(use.busy_seconds)}, waiting ${duration(use.waiting_seconds)}`;
  return h(
    "div",
    { class: "busy" },
    h("progress", { max: ran, value: use.busy_seconds, "aria-label": "Busy" }),
    h("span", { class: "quiet" }, text),
  );
}

function averageOf(use) {
  const facts = [
    use.cpu_seconds === null
      ? null
      : [
          "Processor",
          `${duration(use.cpu_seconds)} on average, at most ${duration(use.max_cpu_seconds)}${use.busy_share === null ? "" : ` (${percent(100 * use.busy_share, 0)} of its time)`}`,
        ],
    use.max_peak_memory_bytes === null ? null : ["Peak memory", `at most ${size(use.max_peak_memory_bytes)}`],
  ].filter(Boolean);
  return [
    h("h3", {}, "A repetition used"),
    h(
      "dl",
      { class: "pairs" },
      facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    ),
  ];
}

/** The facts of a run. */
export function runResources({ resources: use }) {
  if (!use) return [];
  return [
    use.cpu_seconds === null ? null : ["Processor", `${use.is_partial ? "≥ " : ""}${duration(use.cpu_seconds)}`],
    use.peak_memory_bytes === null ? null : ["Peak memory", size(use.peak_memory_bytes)],
  ];
}
