// The legend of the map: the scale with its mark at the bound, and the look of what has no number.

import { el, replace, byId } from "./dom.js";
import { differenceGradient, scaleGradient } from "./colour.js";
import { STATUS } from "./format.js";
import { sides } from "./data.js";
import { shownSides, sheet, state } from "./state.js";

export function drawLegend() {
  const difference = state.view === "difference";
  replace(byId("legend"), el("div", { class: "legend" }, difference ? differenceScale() : ratioScale(), keys(difference)));
}

function ticks(found) {
  return el("div", { class: "scale-ticks", "aria-hidden": "true" },
    found.map(([place, text, strong]) => el("span", { class: strong ? "strong" : null, style: { left: `${place}%` } }, text)));
}

function ratioScale() {
  const source = sides[state.side].isSource && state.view === "one";
  return el("div", { class: "scale", role: "img", "aria-label": "Colour scale: blue within the tolerance, orange to red beyond it, logarithmic" },
    el("div", { class: "scale-ends" }, el("span", {}, source ? "the reference is exact" : "within the tolerance"), el("span", {}, "mismatch ✕")),
    el("div", { class: "scale-bar", style: { background: scaleGradient() } }, el("i", { class: "scale-one" })),
    ticks([[0, "≤ 0.01"], [25, "0.1"], [50, "1 = the tolerance", true], [75, "10"], [100, "≥ 100"]]));
}

function differenceScale() {
  const [a, b] = [sides[state.side].label, sides[state.other].label];
  return el("div", { class: "scale", role: "img", "aria-label": `Colour scale: how much larger the error of ${b} is than that of ${a}` },
    el("div", { class: "scale-ends" }, el("span", {}, `${b} is nearer`), el("span", {}, `${b} is farther`)),
    el("div", { class: "scale-bar", style: { background: differenceGradient() } }, el("i", { class: "scale-one" })),
    ticks([[0, "⅛"], [33, "½"], [50, "alike", true], [67, "2×"], [100, "≥ 8×"]]));
}

function keys(difference) {
  if (difference) {
    return el("ul", { class: "keys" }, el("li", {}, el("i", { class: "key key-other", "aria-hidden": "true" }, "≠"), "another status"),
      el("li", {}, el("i", { class: "key key-none", "aria-hidden": "true" }), "no numbers to compare"));
  }
  const seen = new Set(shownSides().flatMap(side => {
    const found = sheet(side);
    return found ? [...found.data.status] : ["."];
  }));
  if (state.step !== null) seen.add("-");
  const shown = ["f", "l", "e", "c", "u", "s", ".", "-"].filter(letter => seen.has(letter));
  if (!shown.length) return null;
  return el("ul", { class: "keys" }, shown.map(letter => el("li", { title: STATUS[letter].means },
    el("i", { class: `key key-${letter === "." ? "none" : letter === "-" ? "nocall" : letter}`, "aria-hidden": "true" }, STATUS[letter].mark),
    letter === "." && shownSides().every(side => sides[side].isSource) ? "no recorded call" : STATUS[letter].word)));
}
