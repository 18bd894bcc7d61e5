/** A function that calls `work` at most once in `interval` ms, the last time after its last call; `.cancel()` ends it. */
export function throttle(work, interval) {
  let timer = 0;
  let last = -Infinity;
  const call = () => {
    timer = 0;
    last = performance.now();
    work();
  };
  const soon = () => {
    if (!timer) timer = setTimeout(call, Math.max(0, last + interval - performance.now()));
  };
  soon.cancel = () => clearTimeout(timer);
  return soon;
}
