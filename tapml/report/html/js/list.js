// Search, filters, and the operators that they leave, as a list: the map for those who cannot see it, and for those who know a name.

import { byId, el, replace, select } from "./dom.js";
import { cellColour, inkOn } from "./colour.js";
import { kinds, layers, operators, sides, targets, worse } from "./data.js";
import { STATUS, ofBound, plural } from "./format.js";
import { badge } from "./panel.js";
import { cellOf, isFiltered, matches, set, shownSides, state } from "./state.js";

const PAGE = 60;
let shown = PAGE;
let order = "model";

// Operators that search and filters leave, in the list's order; of all graphs while one is searched for by name.
export function listed() {
  const found = operators.filter(operator => operator.graph === state.graph && matches(operator));
  if (order === "model") return found;
  return found.map(operator => [operator, cellOf(operator.place)]).sort((a, b) => worse(a[1], b[1])).map(([operator]) => operator);
}

export function buildList() {
  replace(byId("list"),
    el("div", { class: "filters" },
      el("input", {
        type: "search", id: "search", placeholder: "Search by name or kind", "aria-label": "Search operators by name or kind", autocomplete: "off", spellcheck: "false",
        oninput: event => { shown = PAGE; set({ query: event.target.value }); },
      }),
      el("div", { id: "filter-row", class: "filter-row" })),
    el("p", { id: "list-count", class: "note", "aria-live": "polite" }),
    el("div", { id: "rows", role: "list" }),
    el("button", { type: "button", id: "more", class: "plain", onclick: () => { shown += 4 * PAGE; drawList(); } }));
}

export function drawFilters() {
  const statuses = [...new Set(targets.flatMap(side => Object.values(side.modes).flatMap(found => [...found.data.status])))].filter(letter => letter !== "r");
  const order_ = ["f", "l", "e", "c", "s", "p", "."].filter(letter => statuses.includes(letter));
  const toggle = letter => {
    const next = new Set(state.statuses);
    if (!next.delete(letter)) next.add(letter);
    set({ statuses: next });
  };
  replace(byId("filter-row"),
    order_.length > 1 ? el("div", { class: "chips", role: "group", "aria-label": "Filter by status" }, order_.map(letter => el("button", {
      type: "button", "aria-pressed": String(state.statuses.has(letter)), onclick: () => toggle(letter),
    }, el("i", { "aria-hidden": "true" }, STATUS[letter].mark), STATUS[letter].word))) : null,
    select("Kind", [["", "All kinds"], ...kinds.map(kind => [kind, kind.replaceAll("_", " ")])], state.kind, kind => set({ kind })),
    layers.length > 1 ? el("span", { class: "range" },
      select("First layer", layers.map(layer => [layer, `Layer ${layer}`]), state.from, layer => set({ from: Number(layer), to: Math.max(Number(layer), state.to) })),
      "–", select("Last layer", layers.map(layer => [layer, `${layer}`]), state.to, layer => set({ to: Number(layer), from: Math.min(Number(layer), state.from) }))) : null,
    select("Order", [["model", "In model order"], ["worst", "Worst first"]], order, chosen => { order = chosen; drawList(); }),
    isFiltered() ? el("button", { type: "button", class: "plain", onclick: () => {
      byId("search").value = "";
      set({ query: "", statuses: new Set(), kind: "", from: layers[0] ?? 0, to: layers.at(-1) ?? 0 });
    } }, "Clear") : null);
}

export function drawList() {
  const found = listed();
  const visible = shownSides();
  const total = operators.filter(operator => operator.graph === state.graph).length;
  byId("rows").style.setProperty("--sides", visible.length);
  byId("list-count").textContent = found.length === total ? plural(total, "operator") : `${found.length.toLocaleString("en")} of ${plural(total, "operator")}`;
  if (!found.length) replace(byId("rows"), el("p", { class: "empty small" }, "Nothing matches. Take a filter away, or search for a part of a name such as “q_proj”."));
  else {
    replace(byId("rows"), found.slice(0, shown).map(operator => el("a", {
      role: "listitem", class: "row", href: `#${encodeURIComponent(operator.name)}`, "aria-current": operator.place === state.operator ? "true" : null,
      onclick: event => { event.preventDefault(); set({ operator: operator.place, opened: true }); },
    }, el("span", { class: "row-name" }, operator.short), el("span", { class: "row-kind" }, operator.kind.replaceAll("_", " ")),
      visible.map(side => numbers(operator, side)))));
  }
  const more = byId("more");
  more.hidden = found.length <= shown;
  more.textContent = `Show ${Math.min(4 * PAGE, found.length - shown)} more`;
}

function numbers(operator, side) {
  const cell = cellOf(operator.place, side);
  const colour = cellColour(cell);
  return el("span", { class: "row-cell" },
    cell.ratio === null ? null : el("span", { class: "chip", style: { background: colour, color: inkOn(colour) }, title: sides[side].label }, ofBound(cell)),
    cell.ratio !== null && ["r", "p"].includes(cell.status) ? null : badge(cell.status));
}
