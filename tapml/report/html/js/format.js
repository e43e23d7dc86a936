// Numbers and counts as people read them.

export const STATUS = {
  p: { word: "pass", mark: "✓", means: "within the tolerance" },
  f: { word: "fail", mark: "✕", means: "a mismatch: beyond the tolerance" },
  l: { word: "flaky", mark: "≈", means: "different answers to the same input" },
  e: { word: "error", mark: "!", means: "a stage before the numbers refused" },
  c: { word: "crash", mark: "†", means: "a process died" },
  u: { word: "unchecked", mark: "?", means: "it ran; too few elements could be compared" },
  s: { word: "skipped", mark: "–", means: "not run; the reason is given" },
  ".": { word: "not tested", mark: "", means: "there is no verdict" },
  "-": { word: "no call", mark: "·", means: "no recorded call at this step" },
  r: { word: "recorded", mark: "", means: "the reference itself" },
};

// Three digits at most, "1.2e-6" outside of what is easily read.
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return text.replace("-", "−").replace("e-", "e−");
}

// An error as its share of the tolerance. A tolerance of 0 allows no difference.
export function ofBound(cell) {
  if (cell.ratio === null) return "–";
  if (cell.bound === 0) return cell.error === 0 ? "equal" : "not equal";
  return cell.ratio === 0 ? "0" : `${number(cell.ratio)}×`;
}

export function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : /(ch|s|x|sh)$/.test(noun) ? "es" : "s"}`;
}

export function when(seconds) {
  if (seconds === null || seconds === undefined) return null;
  const time = new Date(seconds * 1000);
  return time.toLocaleDateString("en", { year: "numeric", month: "long", day: "numeric" }) + ", " +
    time.toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hour12: false });
}
