// Folds steps that are siblings in a graph: alike but for a number in their names, after the same steps.

const MIN_SIBLINGS = 4;
/** The status of a folded node is the first of these that one of its steps has. */
const WORST_FIRST = [
  "failed",
  "timeout",
  "lost",
  "cancelled",
  "running",
  "retrying",
  "pending",
  "completed",
  "skipped",
];

/** Nodes of a run's graph, in the order of its steps: single steps, and siblings that share one.
 *  `unfolded` holds the keys of groups to show step by step; with `foldsNothing`, all are. */
export function nodesOf(run, { unfolded = new Set(), foldsNothing = false } = {}) {
  const keys = new Map();
  const groups = new Map();
  const byDepth = [...run.steps].sort((a, b) => a.depth - b.depth || a.index - b.index);
  for (const step of byDepth) {
    const key = keyOf(run, step, keys);
    keys.set(step, key);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(step);
  }
  const nodes = [];
  for (const [key, steps] of groups) {
    if (steps.length < MIN_SIBLINGS || foldsNothing || unfolded.has(key)) nodes.push(...steps.map(single));
    else
      nodes.push({ key, steps, name: `${steps[0].name.replace(/\d+/g, "*")} ×${steps.length.toLocaleString("en")}` });
  }
  link(run, nodes);
  return nodes;
}

function keyOf(run, step, keys) {
  const before = new Set(step.dependsOn.map((id) => keys.get(run.byId.get(id))).filter(Boolean));
  // A number stands for the keys of what is before: keys that hold keys would grow with every layer.
  const parents = [...before].map((key) => numberOf(keys, key)).sort((a, b) => a - b);
  return `${step.depth} ${parents.join(",")} ${step.name.replace(/\d+/g, "*")}`;
}

const numbers = new WeakMap();

function numberOf(keys, key) {
  if (!numbers.has(keys)) numbers.set(keys, new Map());
  const known = numbers.get(keys);
  if (!known.has(key)) known.set(key, known.size);
  return known.get(key);
}

function single(step) {
  return { key: step.id, steps: [step], name: step.name };
}

function link(run, nodes) {
  const nodeOf = new Map();
  nodes.forEach((node, index) => {
    Object.assign(node, { index, depth: node.steps[0].depth, before: new Set(), after: new Set() });
    node.isCritical = node.steps.some((step) => step.isCritical);
    for (const step of node.steps) nodeOf.set(step, node);
  });
  for (const node of nodes) {
    for (const step of node.steps) {
      for (const id of step.dependsOn) {
        const other = nodeOf.get(run.byId.get(id));
        if (!other || other === node) continue;
        node.before.add(other);
        other.after.add(node);
      }
    }
  }
}

/** Statuses of a node's steps with their counts, and the status that its colour shows. */
export function summaryOf(node) {
  const counts = new Map();
  for (const { status } of node.steps) counts.set(status, (counts.get(status) ?? 0) + 1);
  return { counts, status: WORST_FIRST.find((status) => counts.has(status)) ?? "pending" };
}
