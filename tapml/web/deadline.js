// A time limit that counts only time in which this page lived. A page that was frozen in the background, and its GPU's answers with it, would
// find all its timers over when it goes on, and end a device that did nothing wrong.
//
//     const stop = after(120000, () => gpu.end("…"))
//     stop()

const SLICE_MILLISECONDS = 1000;

export function after(milliseconds, act) {
  let left = milliseconds;
  let timer = null;
  const next = () => {
    const slice = Math.min(left, SLICE_MILLISECONDS);
    const before = performance.now();
    timer = setTimeout(() => {
      left -= Math.max(slice, Math.min(performance.now() - before, 2 * slice));
      if (left > 0) next();
      else act();
    }, slice);
  };
  next();
  return () => clearTimeout(timer);
}
