// What a wrong output looks like: an error map, in the colours of the big map, and both histograms on one axis.

import { el } from "./dom.js";
import { ratioColour } from "./colour.js";
import { number, plural } from "./format.js";

const LEVELS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const WIDTH = 380;

// The ratio that a letter stands for: null where nothing was compared, Infinity for a NaN or infinity out of place.
function ratioOf(letter) {
  if (letter === " ") return null;
  if (letter === "~") return Infinity;
  const level = LEVELS.indexOf(letter);
  return level === 0 ? 0 : 10 ** (level / (LEVELS.length - 1) * 4 - 2);
}

export function pictureView(drawn, label) {
  const output = `Output ${drawn.output}, ${drawn.dtype}[${drawn.shape.join(", ")}], in ${drawn.trial}`;
  return el("figure", { class: "picture" },
    el("figcaption", { class: "note" }, output, "."),
    drawn.maps.map(map => errorMap(map, label)),
    drawn.values ? spread(drawn.values) : null);
}

function errorMap(map, label) {
  const across = map.height ? map.cells.length / map.height : 0;
  if (!across) return null;
  const canvas = el("canvas", { width: across, height: map.height, class: "error-map", role: "img", "aria-label": `Error map of ${label}: ${map.pattern}` });
  const cell = Math.max(Math.min(WIDTH / across, 24), 1);
  canvas.style.width = `${Math.round(Math.min(across * cell, WIDTH))}px`;
  canvas.style.height = `${Math.round(Math.min(Math.max(map.height * cell, 14), WIDTH))}px`;
  const paint = canvas.getContext("2d");
  [...map.cells].forEach((letter, k) => {
    const ratio = ratioOf(letter);
    if (ratio === null) return;
    paint.fillStyle = ratioColour(Math.min(ratio, 1e3));
    paint.fillRect(k % across, Math.floor(k / across), 1, 1);
  });
  const [down, wide] = map.every;
  const note = el("p", { class: "note map-at" }, "Point at the map to read an element.");
  canvas.addEventListener("pointermove", event => {
    const box = canvas.getBoundingClientRect();
    const row = Math.min(Math.floor((event.clientY - box.top) / box.height * map.height), map.height - 1);
    const column = Math.min(Math.floor((event.clientX - box.left) / box.width * across), across - 1);
    const ratio = ratioOf(map.cells[Math.max(row, 0) * across + Math.max(column, 0)]);
    const said = ratio === null ? "not compared" : ratio === Infinity ? "NaN or infinity out of place, or not equal" : `${number(ratio)}× the tolerance`;
    note.textContent = `${map.rows ? `${map.rows}: ${row * down}, ` : ""}${map.columns}: ${column * wide} — ${said}`;
  });
  return el("div", {},
    el("p", {}, el("b", {}, `${map.rows ? `${map.rows} down, ` : ""}${map.columns} across`), map.at ? ` at ${map.at}` : "", `: ${map.pattern}.`),
    canvas, note,
    down * wide > 1 ? el("p", { class: "note" }, `Reduced from ${map.size.map(n => n.toLocaleString("en")).join(" × ")}: each cell is the worst of ${down} × ${wide} elements, so a finer pattern does not show.`) : null);
}

// Expected upwards, actual downwards.
function spread(values) {
  const half = (bars, name) => el("span", { class: `spread-${name}` }, [...bars].map(digit => el("i", { style: { height: `${Math.round(parseInt(digit, 36) / 35 * 100)}%` } })));
  const beyond = [values.outside ? `${plural(values.outside, "actual value")} beyond this axis` : "", values.odd ? `${plural(values.odd, "NaN or ∞ element")}` : ""].filter(Boolean);
  return el("div", { class: "spread" },
    el("p", {}, el("b", {}, "Expected (above) and actual (below) values"), " on one axis; heights are logarithmic."),
    el("div", { class: "spread-bars", role: "img", "aria-label": `Histograms from ${number(values.low)} to ${number(values.high)}` }, half(values.expected, "expected"), half(values.actual, "actual")),
    el("p", { class: "note spread-ends" }, el("span", {}, number(values.low)), el("span", {}, number(values.high))),
    beyond.length ? el("p", { class: "note" }, `${beyond.join("; ")}.`) : null);
}
