// In place of `views/run_actions.js`: nothing can be done with a run in a file.

export function runActions() {
  return { element: null, update() {} };
}
