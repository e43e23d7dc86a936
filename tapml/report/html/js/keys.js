// The keyboard: arrows in the map, and one letter for each of the usual ways around.

import { byId, el, replace } from "./dom.js";
import { DATA, operators } from "./data.js";
import { listed } from "./list.js";
import { matches, ofGraph, set, shownSides, state, steps, verdictOf } from "./state.js";
import { toggleTheme } from "./theme.js";

const KEYS = [
  ["← ↑ → ↓", "move in the map"], ["Enter", "open the operator"], ["j  k", "next, previous operator"], ["n  N", "next, previous failure"],
  ["/", "search"], ["[  ]", "step back, step on"], ["g", "next graph"], ["t", "light or dark"], ["Esc", "close"], ["?", "these keys"],
];

export function help() {
  const dialog = byId("help");
  replace(dialog, el("h2", {}, "Keys"), el("dl", {}, KEYS.map(([key, text]) => el("div", {}, el("dt", {}, key.split("  ").map(k => el("kbd", {}, k))), el("dd", {}, text)))),
    el("button", { type: "button", onclick: () => dialog.close() }, "Close"));
  if (!dialog.open) dialog.showModal();
}

function along(found, step, open = true) {
  if (!found.length) return;
  const here = found.findIndex(operator => operator.place === state.operator);
  const next = here < 0 ? (step > 0 ? 0 : found.length - 1) : (here + step + found.length) % found.length;
  set({ operator: found[next].place, opened: state.opened || open });
}

function failures() {
  const bad = new Set(["f", "l", "e", "c", "u"]);
  return operators.filter(operator => shownSides().some(side => bad.has(verdictOf(operator.place, side).status)));
}

// The next operator in a direction: the nearest in the row or column that filters leave.
export function moveInMap(rows, columns) {
  const cells = ofGraph().filter(matches);
  if (!cells.length) return;
  const here = operators[state.operator];
  if (!here || here.graph !== state.graph) return set({ operator: cells[0].place });
  const column = here.column ?? 0;
  const cost = other => {
    const down = other.row - here.row, across = (other.column ?? column) - column;
    if (rows ? Math.sign(down) !== rows : down !== 0 || Math.sign(across) !== columns) return Infinity;
    return rows ? Math.abs(down) * 1000 + Math.abs(across) : Math.abs(across);
  };
  let best = null;
  for (const other of cells) if (cost(other) < (best ? cost(best) : Infinity)) best = other;
  if (best) set({ operator: best.place });
}

function stepBy(by) {
  const all = [null, ...steps()];
  const next = all[all.indexOf(state.step) + by];
  if (next !== undefined) set({ step: next });
}

const ACTIONS = {
  j: () => along(listed(), 1), k: () => along(listed(), -1), n: () => along(failures(), 1), N: () => along(failures(), -1),
  "[": () => stepBy(-1), "]": () => stepBy(1), t: toggleTheme, "?": help,
  g: () => set({ operator: null, graph: (state.graph + 1) % DATA.graphs.length }),
  "/": () => { byId("search").focus(); byId("search").select(); },
};
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export function listen() {
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (event.target.id === "search") return event.target.blur();
      return set({ operator: null, opened: false });
    }
    if (byId("help").open || byId("beside").open || event.target.closest?.("input, select, textarea")) return;
    if (event.target.closest?.(".map") && (event.key in ARROWS || event.key === "Enter")) {
      event.preventDefault();
      if (event.key === "Enter") {
        set({ opened: true, operator: state.operator ?? ofGraph().find(matches)?.place ?? null });
        byId("panel").focus({ preventScroll: true });
      } else moveInMap(...ARROWS[event.key]);
      return;
    }
    const action = ACTIONS[event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  });
}
