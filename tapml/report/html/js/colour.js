// Colours of cells. Below the bound blue, beyond it orange to red: a pair that every common kind of colour blindness tells apart; and
// whatever is beyond has a mark too. The scale is logarithmic, from a hundredth of the bound to a hundred times it.

import { isDark } from "./theme.js";

const SCALES = {
  light: { below: ["#eef4f9", "#c3daec", "#83b3d8", "#3f7fb8", "#1c4f86"], above: ["#f7a35c", "#e0661f", "#b03a0e", "#6d1a06"] },
  dark: { below: ["#18222d", "#1d3a55", "#275b87", "#3f86bf", "#7fbdec"], above: ["#ffc27a", "#ff9440", "#f2602a", "#d62f2f"] },
};
const PLAIN = {
  light: { e: "#e9dcf2", c: "#3d3a44", s: "#ededea", ".": "#ffffff00", "-": "#ffffff00", r: "#ffffff00" },
  dark: { e: "#4a3560", c: "#d9d5e0", s: "#2a2d31", ".": "#00000000", "-": "#00000000", r: "#00000000" },
};
const DIFFERENCE = {
  light: { better: ["#f3f3f1", "#bfe0dc", "#4fa69c", "#0e665e"], worse: ["#f3f3f1", "#f3cfe0", "#cf6a9e", "#8a1c5a"] },
  dark: { better: ["#22262a", "#1f4a47", "#2f8d84", "#79d8ce"], worse: ["#22262a", "#56273f", "#b44d84", "#f5a3cb"] },
};
const LOW = -2, HIGH = 2;

function mix(a, b, t) {
  const part = k => Math.round(parseInt(a.slice(k, k + 2), 16) * (1 - t) + parseInt(b.slice(k, k + 2), 16) * t);
  return "#" + [1, 3, 5].map(k => part(k).toString(16).padStart(2, "0")).join("");
}

function along(stops, t) {
  const place = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const k = Math.min(Math.floor(place), stops.length - 2);
  return mix(stops[k], stops[k + 1], place - k);
}

const theme = () => isDark() ? "dark" : "light";

export function ratioColour(ratio) {
  const scale = SCALES[theme()];
  if (ratio === 0) return scale.below[0];
  const log = Math.log10(ratio);
  return log <= 0 ? along(scale.below, 1 - log / LOW) : along(scale.above, log / HIGH);
}

export function cellColour(cell) {
  return cell.ratio === null ? PLAIN[theme()][cell.status] ?? PLAIN[theme()]["."] : ratioColour(cell.ratio);
}

// How the second side differs from the first: log2 of the quotient of their ratios, up to eight times either way.
export function differenceColour(log2) {
  const scale = DIFFERENCE[theme()];
  return along(log2 > 0 ? scale.worse : scale.better, Math.abs(log2) / 3);
}

export function inkOn(colour) {
  if (colour.length > 7) return isDark() ? "#9aa0a8" : "#5a5e66";
  const [r, g, b] = [1, 3, 5].map(k => (parseInt(colour.slice(k, k + 2), 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.28 ? "#14161a" : "#ffffff";
}

// CSS gradient of the scale from a hundredth to a hundred.
export function scaleGradient() {
  const { below, above } = SCALES[theme()];
  const stops = [...below.map((c, k) => `${c} ${(k / (below.length - 1)) * 50}%`), ...above.map((c, k) => `${c} ${50 + (k / (above.length - 1)) * 50}%`)];
  return `linear-gradient(90deg, ${stops.join(", ")})`;
}

export function differenceGradient() {
  const { better, worse } = DIFFERENCE[theme()];
  return `linear-gradient(90deg, ${[...better].reverse().concat(worse.slice(1)).join(", ")})`;
}
