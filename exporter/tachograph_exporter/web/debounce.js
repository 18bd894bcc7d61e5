/** A function that calls `work` once, `delay` ms after its own last call; `.cancel()` drops a pending call. */
export function debounce(work, delay) {
  let timer = 0;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), delay);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}
