// Whether the service answers: since when it does not, for everyone on the page who asks.

let missingSince = null;
const listeners = new Set();

/** The service answered. */
export function reached() {
  if (missingSince === null) return;
  missingSince = null;
  for (const listener of listeners) listener(null);
}

/** The service did not answer. */
export function missed() {
  if (missingSince !== null) return;
  missingSince = new Date();
  for (const listener of listeners) listener(missingSince);
}

/** Call `listener(date | null)` when the service stops answering, and with null when it answers again. */
export function onReach(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
