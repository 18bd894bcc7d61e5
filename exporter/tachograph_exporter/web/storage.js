// What the browser keeps for this page. Where it may keep nothing (in a frame, with its storage blocked), nothing is
// kept.

/** The value kept under a name, or null. */
export function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

/** Keep a value under a name. */
export function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // It is chosen again next time.
  }
}
