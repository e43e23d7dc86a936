// What the page shows at the moment, in one place. Everybody who shows something listens; everybody who changes something calls `set`.

import { DATA, layers, operators, sides, targets } from "./data.js";

// Where something failed comes first: a reader looks for that.
export const fails = side => Object.values(side.modes).some(found => [..."flecu"].some(letter => found.data.status.includes(letter)));
// As they are listed: those with failures before the others.
export const ordered = [...targets].sort((a, b) => Number(fails(b)) - Number(fails(a)));
const first = ordered[0] ?? sides[0];

export const state = {
  side: first.place,
  other: (ordered[1] ?? sides[0]).place,
  view: targets.length > 1 ? "two" : "one",
  mode: "isolated" in first.modes ? "isolated" : Object.keys(first.modes)[0],
  graph: worstGraph(),
  step: null,
  operator: null,
  query: "",
  statuses: new Set(),
  kind: "",
  from: layers[0] ?? 0,
  to: layers.at(-1) ?? 0,
  opened: false,
};

export const opening = { ...state };

// The first graph in which something failed, else the first.
function worstGraph() {
  const status = Object.values(first.modes)[0]?.data.status ?? "";
  return operators.find(operator => "flecu".includes(status[operator.place] ?? "."))?.graph ?? 0;
}

const listeners = [];

export function onChange(listener) {
  listeners.push(listener);
}

export function set(patch) {
  const before = { ...state };
  Object.assign(state, patch);
  settle();
  const changed = new Set(Object.keys(state).filter(key => state[key] !== before[key]));
  if (changed.size) for (const listener of listeners) listener(changed);
}

// What is chosen must exist: a mode that this side has, a step that was measured, an operator of the graph.
function settle() {
  const modes = sides[state.side].modes;
  if (!(state.mode in modes)) state.mode = Object.keys(modes)[0] ?? state.mode;
  if (state.operator !== null) state.graph = operators[state.operator].graph;
  if (state.step !== null && !steps().includes(state.step)) state.step = null;
}

export function sheet(side = state.side) {
  return sides[side].modes[state.mode] ?? null;
}

export function shownSides() {
  return state.view === "one" ? [state.side] : [state.side, state.other];
}

export function steps() {
  const found = new Set();
  for (const side of shownSides()) for (const step of sheet(side)?.steps(state.graph) ?? []) found.add(step);
  return [...found].sort((a, b) => a - b);
}

const NOTHING = { status: ".", error: null, bound: null, source: null, ratio: null, step: null };

export function cellOf(operator, side = state.side, step = state.step) {
  return sheet(side)?.cell(operator, step) ?? NOTHING;
}

export function verdictOf(operator, side = state.side) {
  return cellOf(operator, side, null);
}

// Whether an operator is among what search and filters leave.
export function matches(operator) {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const text = `${operator.name} ${operator.kind}`.toLowerCase();
  if (!words.every(word => text.includes(word))) return false;
  if (state.kind && operator.kind !== state.kind) return false;
  if (operator.layer !== null && (operator.layer < state.from || operator.layer > state.to)) return false;
  if (operator.layer === null && layers.length && (state.from > layers[0] || state.to < layers.at(-1))) return false;
  if (state.statuses.size) {
    return shownSides().some(side => state.statuses.has(verdictOf(operator.place, side).status));
  }
  return true;
}

export function isFiltered() {
  return Boolean(state.query || state.kind || state.statuses.size || (layers.length && (state.from > layers[0] || state.to < layers.at(-1))));
}

export function ofGraph(graph = state.graph) {
  return operators.filter(operator => operator.graph === graph);
}

export function graphName(graph) {
  return DATA.graphs[graph];
}
