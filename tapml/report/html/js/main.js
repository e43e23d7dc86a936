// Puts the page together: controls, maps, tooltip, and who is drawn anew when something changes.

import { byId, choice, el, replace, select } from "./dom.js";
import { cellColour, differenceColour } from "./colour.js";
import { difference, drawCompare } from "./compare.js";
import { DATA, operators, sides } from "./data.js";
import { STATUS, number, ofBound, plural } from "./format.js";
import { drawSummary, drawTop, drawUnchecked } from "./header.js";
import { drawHealth } from "./health.js";
import { drawInvariance } from "./invariance.js";
import { help, listen } from "./keys.js";
import { drawLegend } from "./legend.js";
import { buildList, drawFilters, drawList } from "./list.js";
import { HeatMap } from "./map.js";
import { drawPanel } from "./panel.js";
import { cellOf, graphName, matches, ofGraph, onChange, opening, set, shownSides, state, steps } from "./state.js";
import { drawStory } from "./story.js";
import { onTheme } from "./theme.js";

const MODES = { isolated: "Isolated", cumulative: "Cumulative" };
const SAID = { isolated: "each operator given the recorded inputs", cumulative: "each operator given what the target computed before it" };

let maps = [];

function drawControls() {
  const labels = sides.map(side => [side.place, side.label]);
  const modes = Object.keys(MODES).filter(mode => shownSides().some(side => mode in sides[side].modes));
  const all = [null, ...steps()];
  const place = all.indexOf(state.step);
  replace(byId("controls"),
    sides.length > 1 ? choice("Sides", [["one", "One"], ["two", "Side by side"], ["difference", "Difference"]], state.view, view => set({ view })) : null,
    sides.length > 1 ? el("span", { class: "pair" }, select("Side", labels, state.side, side => set({ side: Number(side) })),
      state.view === "one" ? null : [el("span", { class: "note" }, "and"), select("Other side", labels, state.other, other => set({ other: Number(other) }))]) : null,
    DATA.graphs.length > 1 ? choice("Graph", DATA.graphs.map((name, k) => [k, name]), state.graph, graph => set({ graph, operator: null, opened: false })) : null,
    modes.length > 1 ? choice("Mode", modes.map(mode => [mode, MODES[mode], SAID[mode]]), state.mode, mode => set({ mode })) : null,
    all.length > 2 ? el("label", { class: "slider" }, el("span", { class: "slider-text", id: "step-text" }, stepText()),
      el("input", {
        type: "range", id: "step", min: "0", max: String(all.length - 1), step: "1", value: String(place), "aria-label": "Step", "aria-valuetext": stepText(),
        oninput: event => set({ step: all[Number(event.target.value)] }),
      })) : null);
  byId("map-note").textContent = `${graphName(state.graph)} · ${SAID[state.mode]} · ${stepText().toLowerCase()}`;
}

function stepText() {
  return state.step === null ? "Worst of all steps" : `Step ${state.step}`;
}

async function buildMaps() {
  const grid = DATA.grids[state.graph];
  const count = state.view === "two" ? 2 : 1;
  if (maps.length !== count) {
    maps = Array.from({ length: count }, (_, k) => new HeatMap("Error over tolerance of each operator; arrows move, Enter opens", {
      hover: (operator, x, y) => hover(operator, x, y),
      select: operator => set({ operator, opened: true }),
    }));
    replace(byId("maps"), maps.map((map, k) => el("div", { class: "map-side" }, el("h3", { class: "map-title" }), map.node)));
    byId("maps").classList.toggle("pair-of-maps", count === 2);
  }
  drawMaps();
  await Promise.all(maps.map(map => map.build(grid)));
}

function drawMaps() {
  document.querySelectorAll(".map-title").forEach((title, k) => {
    title.textContent = state.view === "difference" ? `${sides[state.other].label} against ${sides[state.side].label}` : state.view === "two" ? sides[shownSides()[k]].label : "";
    title.hidden = state.view === "one";
  });
  maps.forEach((map, k) => map.draw(cells(shownSides()[k] ?? state.side), state.operator));
  const operator = operators[state.operator];
  byId("map-live").textContent = operator ? `${operator.name}: ${shownSides().map(side => said(cellOf(operator.place, side), side)).join("; ")}` : "";
}

function said(cell, side) {
  return `${sides[side].label} ${STATUS[cell.status].word}${cell.ratio === null ? "" : `, ${ofBound(cell)} of the tolerance`}`;
}

function cells(side) {
  return ofGraph().map(operator => {
    const cell = cellOf(operator.place, side);
    const base = { operator: operator.place, row: operator.row, column: operator.column, strong: matches(operator) };
    if (state.view === "difference") {
      const { status, log2 } = difference(cell, cellOf(operator.place, state.other));
      return { ...base, colour: log2 === null ? "#00000000" : differenceColour(log2), mark: status ? "≠" : "", hatch: false };
    }
    return { ...base, colour: cellColour(cell), mark: ["p", "r"].includes(cell.status) ? "" : STATUS[cell.status].mark, hatch: cell.status === "s" };
  });
}

function hover(place, x, y) {
  const tip = byId("tooltip");
  tip.hidden = place === null;
  if (place === null) return;
  const operator = operators[place];
  replace(tip, el("p", { class: "tip-name" }, operator.short), el("p", { class: "tip-kind" }, `${operator.kind.replaceAll("_", " ")} · ${stepText().toLowerCase()}`),
    shownSides().map(side => {
      const cell = cellOf(place, side);
      return el("div", { class: "tip-side" }, shownSides().length > 1 ? el("b", {}, sides[side].label) : null,
        el("span", {}, el("i", { "aria-hidden": "true" }, STATUS[cell.status].mark), ` ${STATUS[cell.status].word}`),
        cell.ratio === null ? el("span", { class: "tip-note" }, STATUS[cell.status].means) : [
          el("span", { class: "tip-ratio" }, ofBound(cell)),
          el("span", { class: "tip-note" }, `error ${number(cell.error)} · tolerance ${number(cell.bound)} · reference’s own ${number(cell.source)}${cell.excluded ? ` · ${cell.excluded.toLocaleString("en")} of ${plural(cell.elements, "element")} not compared` : ""}`)]);
    }));
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? y - height - 12 : y + 18}px`;
}

// Scrolls the list, and never the page.
function showCurrentRow() {
  const rows = byId("rows"), row = rows.querySelector("[aria-current]");
  if (!row) return;
  const above = row.getBoundingClientRect().top - rows.getBoundingClientRect().top, below = above + row.offsetHeight - rows.clientHeight;
  if (above < 0) rows.scrollTop += above;
  else if (below > 0) rows.scrollTop += below;
}

function drawAll() {
  drawTop(help);
  drawSummary();
  drawControls();
  drawLegend();
  drawFilters();
  drawList();
  drawPanel();
  drawCompare();
  drawStory();
  drawHealth();
  drawInvariance();
  drawUnchecked();
}

onChange(changed => {
  const any = (...keys) => keys.some(key => changed.has(key));
  if (any("side", "other", "view", "mode", "graph") || (any("step") && document.activeElement?.id !== "step")) drawControls();
  else if (any("step")) {
    byId("step-text").textContent = stepText();
    byId("step").setAttribute("aria-valuetext", stepText());
    byId("map-note").textContent = `${graphName(state.graph)} · ${SAID[state.mode]} · ${stepText().toLowerCase()}`;
  }
  if (any("side", "other", "view", "mode", "step", "graph")) drawLegend();
  if (any("view", "graph")) buildMaps();
  else drawMaps();
  if (any("query", "kind", "statuses", "from", "to", "side", "mode")) drawFilters();
  if (any("side", "other", "view", "mode", "graph", "step", "query", "kind", "statuses", "from", "to", "operator")) drawList();
  if (any("operator", "opened", "side", "other", "view", "mode")) drawPanel();
  if (any("side", "other", "view", "mode")) drawCompare();
  if (any("operator", "side", "other", "view", "mode", "step")) history.replaceState(null, "", address() || location.pathname);
  if (any("operator")) showCurrentRow();
});

// A link keeps the operator, and side, mode and step where they are not those that the page opens with.
function address() {
  const now = { side: sides[state.side].label, other: sides[state.other].label, view: state.view, mode: state.mode, step: state.step };
  const first = { ...opening, side: sides[opening.side].label, other: sides[opening.other].label };
  const parts = Object.keys(now).filter(key => now[key] !== first[key] && !(key === "other" && now.view === "one"))
    .map(key => `&${key}=${encodeURIComponent(now[key] ?? "worst")}`);
  const name = state.operator === null ? "" : encodeURIComponent(operators[state.operator].name);
  return name || parts.length ? `#${name}${parts.join("")}` : "";
}

// What was typed by hand may hold no text.
function decoded(text) {
  try {
    return decodeURIComponent(text ?? "");
  } catch {
    return "";
  }
}

function fromAddress() {
  const [name, ...parts] = location.hash.slice(1).split("&");
  const given = Object.fromEntries(parts.map(part => part.split("=").map(decoded)));
  const place = label => sides.find(side => side.label === label)?.place;
  const patch = {};
  for (const key of ["side", "other"]) if (place(given[key]) !== undefined) patch[key] = place(given[key]);
  if (["one", "two", "difference"].includes(given.view)) patch.view = given.view;
  if (given.mode in MODES) patch.mode = given.mode;
  const operator = operators.find(found => found.name === decoded(name));
  if (operator) Object.assign(patch, { operator: operator.place, opened: true });
  if (Object.keys(patch).length) set(patch);
  // The steps that there are depend on side, mode and graph.
  if (given.step !== undefined) set({ step: given.step === "worst" ? null : Number(given.step) });
}

buildList();
drawAll();
await buildMaps();
listen();
fromAddress();
addEventListener("hashchange", fromAddress);
onTheme(() => {
  drawAll();
  buildMaps();
});
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  buildMaps();
});
document.documentElement.dataset.ready = "true";
