// The report's data, read once: operators, and the sides with their sheets.

import { byId } from "./dom.js";

export const DATA = JSON.parse(byId("data").textContent);

// What JSON has no number for is written as a word.
export function value(written) {
  return typeof written === "string" ? { inf: Infinity, "-inf": -Infinity, nan: NaN }[written] : written;
}

export function string(place) {
  return place === null || place === undefined ? "" : DATA.strings[place];
}

const counted = DATA.graphs.map(() => 0);

export const operators = DATA.operators.name.map((name, place) => {
  const graph = DATA.operators.graph[place];
  const grid = DATA.grids[graph];
  const [row, column] = grid.places[counted[graph]++];
  const slash = name.indexOf("/");
  return {
    place, name, graph, row, column,
    short: slash < 0 ? name : name.slice(slash + 1),
    kind: string(DATA.operators.kind[place]),
    module: string(DATA.operators.module[place]),
    source: DATA.operators.source[place].map(string),
    code: DATA.operators.code[place],
    inputs: DATA.operators.inputs[place],
    signature: DATA.operators.signature[place],
    layer: grid.rows[row][1],
  };
});

// Who reads an operator's outputs.
export const readers = operators.map(() => []);
for (const operator of operators) {
  for (const origin of new Set(operator.inputs)) if (typeof origin === "number") readers[origin].push(operator.place);
}

export const casesOf = new Map();
for (const [place, found] of DATA.cases.entries()) {
  for (const key of [found.operator, "s" + operators[found.operator].signature]) {
    if (!casesOf.has(key)) casesOf.set(key, []);
    casesOf.get(key).push(place);
  }
}

function ratio(error, bound) {
  if (error === null || error === undefined || bound === null || bound === undefined) return null;
  return bound ? error / bound : error ? Infinity : 0;
}

// One mode of one side. A cell is { status, error, bound, source, ratio, step, case, shared }; without numbers its ratio is null.
class Sheet {
  constructor(data) {
    this.data = data;
    this.measures = new Map();
    const found = data.measures;
    found.operator.forEach((operator, k) => {
      if (!this.measures.has(operator)) this.measures.set(operator, []);
      const error = value(found.error[k]), bound = value(found.bound[k]);
      this.measures.get(operator).push({
        status: found.status[k], step: found.step[k], prompt: found.prompt[k], case: found.case[k],
        error, bound, source: value(found.source[k]), ratio: ratio(error, bound),
        excluded: found.excluded?.[k] ?? 0, elements: found.elements?.[k] ?? 0,
      });
    });
  }

  has(operator) {
    return this.data.status[operator] !== ".";
  }

  // The measured calls of an operator, or of the one whose kernels and verdict it shares.
  of(operator) {
    return this.measures.get(operator) ?? this.measures.get(this.data.same_as[operator]) ?? [];
  }

  steps(graph) {
    const found = new Set();
    for (const [operator, measures] of this.measures) {
      if (operators[operator].graph === graph) for (const measure of measures) found.add(measure.step);
    }
    return [...found].sort((a, b) => a - b);
  }

  verdict(operator) {
    const error = value(this.data.error[operator]), bound = value(this.data.bound[operator]);
    return {
      status: this.data.status[operator], error, bound, source: value(this.data.source[operator]), ratio: ratio(error, bound),
      stage: string(this.data.stage[operator]), reason: string(this.data.reason[operator]),
      program: this.data.program[operator], cases: this.data.cases[operator], step: null,
      excluded: this.data.excluded?.[operator] ?? 0, elements: this.data.elements?.[operator] ?? 0,
    };
  }

  // At one step, or over all steps (null).
  cell(operator, step) {
    const verdict = this.verdict(operator);
    if (step === null || "ecus.".includes(verdict.status)) return verdict;
    const found = this.of(operator).filter(measure => measure.step === step);
    if (!found.length) return { ...verdict, status: "-", error: null, bound: null, source: null, ratio: null, step };
    return found.reduce((a, b) => (b.ratio ?? Infinity) > (a.ratio ?? Infinity) ? b : a);
  }
}

export const sides = DATA.sides.map((data, place) => ({
  ...data, place,
  isSource: data.target === "source",
  label: data.target === "source" ? "reference" : data.target + (data.injected ? " + fault" : "") + (data.run ? " · second run" : ""),
  modes: Object.fromEntries(Object.entries(data.modes).map(([mode, sheet]) => [mode, new Sheet(sheet)])),
}));

export const targets = sides.filter(side => !side.isSource);

export const kinds = [...new Set(operators.map(operator => operator.kind))].sort();
export const layers = [...new Set(operators.map(operator => operator.layer).filter(layer => layer !== null))].sort((a, b) => a - b);

export function worse(a, b) {
  if (a.status === "r" && b.status === "r") return b.error - a.error;
  const weight = cell => ({ c: 6, e: 5, f: 4, l: 3, u: 2.5, s: 2, ".": 1 }[cell.status] ?? 0);
  return weight(b) - weight(a) || (b.ratio ?? -1) - (a.ratio ?? -1);
}
