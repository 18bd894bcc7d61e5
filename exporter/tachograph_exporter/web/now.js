// The time that drawings of a run end at.

/** Unix milliseconds, now. A report replaces this: its runs stand still where they were when it was made. */
export function now() {
  return Date.now();
}
