// The panel of one operator: verdicts of all sides, what it computes, what went in and out, its kernels, and why it fails.

import { byId, el, replace } from "./dom.js";
import { errorChart } from "./chart.js";
import { cellColour, inkOn } from "./colour.js";
import { casesOf, DATA, operators, readers, sides, targets, value, worse } from "./data.js";
import { STATUS, number, ofBound, plural } from "./format.js";
import { download, snippetView } from "./code.js";
import { programView } from "./kernel.js";
import { pictureView } from "./picture.js";
import { ordered, sheet, set, shownSides, state, verdictOf } from "./state.js";

const WORST = 14;
// As on the console: a "no" that only leaves a question open is no fault of anything.
const TONES = { right: "✓", wrong: "✕", refused: "✕", open: "·", "not run": "–" };

export function badge(status) {
  return el("span", { class: `badge badge-${status === "." ? "none" : status}` },
    el("i", { "aria-hidden": "true" }, STATUS[status].mark), STATUS[status].word);
}

export function operatorLink(place, text) {
  return el("a", { href: `#${encodeURIComponent(operators[place].name)}`, onclick: event => {
    event.preventDefault();
    set({ operator: place, opened: true });
  } }, text ?? operators[place].name);
}

export function drawPanel() {
  const panel = byId("panel");
  panel.classList.toggle("open", state.opened && state.operator !== null);
  if (state.operator === null) {
    replace(panel, nothing());
    return;
  }
  const operator = operators[state.operator];
  const signature = DATA.signatures[operator.signature];
  const alike = operators.filter(other => other.signature === operator.signature).length;
  replace(panel,
    el("div", { class: "panel-head" },
      el("div", {}, el("p", { class: "eyebrow" }, operator.kind.replaceAll("_", " ")), el("h3", {}, breakable(operator.name))),
      el("button", { type: "button", class: "close", "aria-label": "Close the operator", onclick: () => set({ operator: null, opened: false }) }, "✕")),
    el("div", { class: "panel-body" },
      verdicts(operator),
      pictures(operator),
      diagnosis(operator),
      block("Error, step by step", steps(operator)),
      block("Where it is", where(operator, signature, alike)),
      block("What it computes", body(signature)),
      block("Inputs and outputs", values(operator, signature)),
      ...kernels(operator),
      ...health(operator)));
  panel.scrollTop = 0;
}

// With no operator chosen: where to look first.
function nothing() {
  const found = operators.map(operator => [operator, verdictOf(operator.place)]).sort((a, b) => worse(a[1], b[1])).filter(([, cell]) => cell.status !== ".").slice(0, WORST);
  return el("div", { class: "panel-body" },
    el("h3", {}, sides[state.side].isSource ? "Where the reference is least exact" : "Worst operators"),
    el("p", { class: "note" }, `${sides[state.side].label}, ${state.mode}, all graphs. Choose one here, in the map or in the list; `, el("kbd", {}, "?"), " shows the keys."),
    el("ol", { class: "worst" }, found.map(([operator, cell]) => el("li", {}, operatorLink(operator.place),
      el("span", { class: "row-cell" }, cell.ratio === null ? null : el("span", { class: "chip", style: chip(cell) }, ofBound(cell)), ["r", "p"].includes(cell.status) ? null : badge(cell.status))))));
}

// Names break at dots and slashes before they break anywhere else.
function breakable(name) {
  return name.split(/(?<=[./_])/).flatMap(part => [part, el("wbr")]);
}

function block(title, ...content) {
  const shown = content.flat().filter(Boolean);
  return shown.length ? el("section", { class: "block" }, el("h4", {}, title), shown) : null;
}

function verdicts(operator) {
  const rows = ordered.flatMap(side => Object.entries(side.modes).filter(([, found]) => found.has(operator.place)).map(([mode, found]) => {
    const verdict = found.verdict(operator.place);
    return el("div", { class: "verdict" },
      el("div", { class: "verdict-head" }, badge(verdict.status),
        el("span", { class: "verdict-side" }, side.label), el("span", { class: "note" }, mode),
        verdict.stage ? el("span", { class: "stage" }, `stage ${verdict.stage}`) : null),
      verdict.ratio !== null ? meter(verdict) : null,
      verdict.reason ? el("p", { class: "reason" }, verdict.reason) : null);
  }));
  if (rows.length) return el("div", {}, rows);
  return el("p", { class: "note" }, targets.length ? "No target has a verdict on this operator." : "No target has been run yet: what follows is the reference, as recorded.");
}

// Error, tolerance and the reference's own error on one logarithmic line, the tolerance in the middle.
function meter(cell) {
  const place = ratio => ratio === 0 ? 0 : Math.min(Math.max((Math.log10(ratio) + 2) / 4, 0), 1) * 100;
  const own = cell.bound ? cell.source / cell.bound : 0;
  const colour = cellColour(cell);
  return el("div", { class: "meter" },
    el("div", { class: "meter-bar", role: "img", "aria-label": `error ${number(cell.error)}, tolerance ${number(cell.bound)}, reference’s own ${number(cell.source)}` },
      el("i", { class: "meter-fill", style: { width: `${Math.max(place(cell.ratio), 1)}%`, background: colour } }),
      el("i", { class: "meter-one" }), el("i", { class: "meter-own", style: { left: `${place(own)}%` } })),
    el("dl", { class: "facts meter-facts" },
      fact("error", number(cell.error)), fact("tolerance", number(cell.bound)), fact("err/bound", ofBound(cell)), fact("reference’s own", number(cell.source)), excluded(cell)));
}

// Elements that the reference cannot decide, if there are any.
function excluded(cell) {
  return cell.excluded ? fact("not compared", `${cell.excluded.toLocaleString("en")} of ${plural(cell.elements, "element")}`) : null;
}

function fact(name, value) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value));
}

// What the output looks like that failed.
function pictures(operator) {
  return targets.filter(side => side.pictures[operator.place]).map(side =>
    block(`What the wrong output looks like on ${side.label}`, pictureView(side.pictures[operator.place], operator.name)));
}

function diagnosis(operator) {
  return targets.filter(side => side.explained[operator.place]).map(side => {
    const found = side.explained[operator.place];
    return el("section", { class: "block diagnosis" },
      el("h4", {}, `Diagnosis on ${side.label}`),
      el("p", { class: "because" }, found.stage ? el("b", {}, `${found.stage}: `) : null, found.because),
      found.evidence.length ? el("ol", { class: "evidence" }, found.evidence.map(e => el("li", {},
        el("span", { class: `outcome outcome-${e.tone.replace(" ", "-")}`, "aria-hidden": "true" }, TONES[e.tone] ?? "·"),
        el("div", {}, el("p", { class: "question" }, e.said, el("span", { class: "note" }, e.where ? ` ${e.where}` : "", e.ratio === null ? "" : ` ${number(value(e.ratio))}× the tolerance`)),
          e.detail ? el("p", { class: "note" }, e.detail) : null)))) : null,
      found.findings?.length ? el("ul", { class: "findings" }, found.findings.map(f => el("li", {}, el("b", {}, f.kind), ` — ${f.text}`))) : null,
      found.advice?.length ? [el("h5", {}, "What to try"), el("ul", {}, found.advice.map(line => el("li", {}, line)))] : null,
      reproducer(found));
  });
}

function reproducer(found) {
  if (!found.minimised) return found.not_minimised ? el("p", { class: "note" }, `Not minimised: ${found.not_minimised}`) : null;
  const { inputs, expected, actual } = found.minimised;
  const row = (name, array) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, `${array.dtype}[${array.shape.join(", ")}]`),
    el("td", { class: "values" }, array.values === null ? "in the reproducer" : flat(array.values)));
  return [
    el("h5", {}, "Smallest case that still fails"),
    el("p", { class: "note" }, `${plural(found.elements_before, "input element")} before, ${found.elements_after.toLocaleString("en")} after.`),
    el("div", { class: "scroll" }, el("table", { class: "arrays" }, el("tbody", {},
      inputs.map((a, k) => row(`input ${k}`, a)), expected.map((a, k) => row(`expected ${k}`, a)), actual.map((a, k) => row(`actual ${k}`, a))))),
    found.program !== undefined && found.program !== null ? programView(found.program) : null,
    found.packed ? download(found.packed) : null,
    found.reproducer ? el("p", { class: "note" }, "Runs outside of TapML: ", el("code", { class: "path" }, found.reproducer), found.files.length ? ` (${found.files.join(", ")})` : "") : null,
  ];
}

function flat(values) {
  const all = [values].flat(Infinity);
  return all.slice(0, 64).map(v => v === null ? "NaN" : typeof v === "number" ? number(Math.abs(v) > 1.79e308 ? v * 2 : v) : String(v)).join("  ") + (all.length > 64 ? " …" : "");
}

function steps(operator) {
  const found = shownSides().map(side => [sides[side], sheet(side)?.of(operator.place) ?? []]).filter(([, measures]) => measures.length);
  if (!found.length) return el("p", { class: "note" }, "No single call was measured.");
  return found.map(([side, measures]) => [
    found.length > 1 ? el("p", { class: "note" }, side.label) : null,
    new Set(measures.map(m => m.step)).size > 1 ? errorChart(measures, `Error, tolerance and the reference’s own error of ${operator.name} at each step on ${side.label}`) : null,
    el("div", { class: "scroll" }, el("table", { class: "steps" },
      el("thead", {}, el("tr", {}, ["step", "prompt", "case", "error", "tolerance", "err/bound", "reference’s own"].map(text => el("th", { scope: "col" }, text)))),
      el("tbody", {}, [...measures].sort((a, b) => a.step - b.step).map(m => el("tr", {},
        el("td", {}, m.step), el("td", {}, m.prompt), el("td", {}, m.case === null || m.case === undefined ? "–" : DATA.cases[m.case].id),
        el("td", {}, number(m.error)), el("td", {}, number(m.bound)),
        el("td", {}, el("span", { class: "chip", style: chip(m) }, ofBound(m))), el("td", {}, number(m.source))))))),
  ]);
}

function chip(cell) {
  const colour = cellColour(cell);
  return { background: colour, color: inkOn(colour) };
}

function where(operator, signature, alike) {
  const origins = operator.inputs.map((origin, k) => el("li", {}, el("code", {}, `i${k}`), " ",
    typeof origin === "number" ? operatorLink(origin) : el("span", { class: "origin" }, origin)));
  return [
    el("dl", { class: "facts wide" },
      fact("module", operator.module || "the model itself"), operator.layer === null ? null : fact("layer", String(operator.layer)),
      operator.source.length ? fact("source code", operator.source.join("; ")) : null,
      fact("signature", [el("code", {}, signature.id), alike > 1 ? ` shared by ${alike.toLocaleString("en")} operators` : " of its own"])),
    operator.code.map(snippetView),
    el("p", { class: "note" }, "Reads"), el("ul", { class: "links" }, origins),
    readers[operator.place].length ? [el("p", { class: "note" }, "Is read by"),
      el("ul", { class: "links" }, readers[operator.place].map(place => el("li", {}, operatorLink(place))))] : el("p", { class: "note" }, "Is read by no other operator: a result of the model, or its state."),
  ];
}

function body(signature) {
  const results = new Set(signature.outputs.map(([name]) => name));
  return el("div", { class: "source" }, el("pre", { tabindex: "0" }, el("code", {}, signature.lines.map(([name, text, spec]) => [
    el("span", { class: results.has(name) ? "t-k" : "t-n" }, name), ` = ${text}`, el("span", { class: "t-c" }, `  ${spec}${results.has(name) ? "  → output" : ""}`), "\n"]))));
}

function values(operator, signature) {
  const own = casesOf.get(operator.place), found = own ?? casesOf.get("s" + operator.signature);
  if (!found) return el("p", { class: "note" }, "No call was recorded of any operator with this signature.");
  const host = el("div", {});
  const show = place => {
    const recorded = DATA.cases[place];
    replace(host,
      el("div", { class: "case-pick" }, found.map(k => el("button", {
        type: "button", "aria-pressed": String(k === place), onclick: () => show(k),
      }, DATA.cases[k].id.replace("case", "case "), el("small", {}, ` step ${DATA.cases[k].step}`)))),
      el("p", { class: "note" }, `Prompt ${recorded.prompt}, step ${recorded.step}; kept as ${recorded.reasons.join(", ")}`, own ? "." : [". Recorded from ", operatorLink(recorded.operator), ": equal operators share cases."]),
      el("div", { class: "scroll" }, el("table", { class: "values-table" },
        el("thead", {}, el("tr", {}, ["", "shape", "min", "mean", "max", "values"].map(text => el("th", { scope: "col" }, text)))),
        el("tbody", {},
          recorded.inputs.map((told, k) => told && tensor(`i${k}`, signature.roles[k], signature.inputs[k], told)),
          recorded.outputs.map((told, k) => tensor(signature.outputs[k][0], "output", signature.outputs[k][1], told))))));
  };
  show(found[0]);
  return host;
}

function tensor(name, role, spec, told) {
  return el("tr", {}, el("th", { scope: "row" }, el("code", {}, name), el("small", {}, role)), el("td", {}, spec),
    el("td", {}, number(told.min)), el("td", {}, number(told.mean)), el("td", {}, number(told.max)),
    el("td", {}, told.bars ? bars(told) : told.min !== undefined ? "all equal" : "none finite",
      told.odd ? el("small", { class: "odd" }, plural(told.odd, "NaN or ∞ element")) : null, told.masked ? el("small", {}, `${told.masked} not judged`) : null));
}

function bars(told) {
  const heights = [...told.bars].map(digit => parseInt(digit, 36) / 35);
  return el("span", { class: "bars", role: "img", "aria-label": `distribution from ${number(told.min)} to ${number(told.max)}`, title: "how many values lie where between min and max (logarithmic)" },
    heights.map(height => el("i", { style: { height: `${Math.round(height * 100)}%` } })));
}

function programsOf(side, operator) {
  const programs = new Set(Object.values(side.modes).map(found => found.data.program[operator.place]));
  programs.delete(null);
  return programs;
}

// Both sides' kernels in columns, as wide as the window.
function beside(operator) {
  const shown = shownSides().map(place => sides[place]).filter(side => !side.isSource);
  const found = (shown.length > 1 ? shown : targets).filter(side => programsOf(side, operator).size).slice(0, 2);
  if (found.length < 2) return null;
  return block("Kernels of two sides", el("button", { type: "button", class: "beside-button", onclick: () => {
    const dialog = byId("beside");
    replace(dialog, el("div", { class: "beside-head" }, el("h2", {}, operator.name), el("button", { type: "button", onclick: () => dialog.close() }, "Close")),
      el("div", { class: "beside" }, found.map(side => el("section", {}, el("h3", {}, side.label), [...programsOf(side, operator)].map(place => programView(place, true))))));
    dialog.showModal();
  } }, `${found[0].label} and ${found[1].label} beside each other`));
}

function kernels(operator) {
  return [beside(operator), ...targets.map(side => {
    const programs = programsOf(side, operator);
    if (programs.size) return block(`Kernels on ${side.label}`, [...programs].map(programView));
    const tested = Object.values(side.modes).some(found => found.has(operator.place));
    return tested ? block(`Kernels on ${side.label}`, el("p", { class: "note" }, "There is no kernel to show: it did not compile, or its text is not in the run.")) : null;
  })];
}

function health(operator) {
  const watched = targets.filter(side => side.health);
  return (watched.length ? watched : sides.filter(side => side.health)).map(side => {
    const room = side.health.headroom?.find(h => h.operator === operator.name);
    const made = ["source", "target"].flatMap(where => (side.health[where]?.made ?? []).filter(m => m.operator === operator.name).map(m => [where, m]));
    if (!room && !made.length) return null;
    return block(`Numeric health${watched.length > 1 ? ` (${side.label})` : ""}`,
      made.map(([where, m]) => el("p", { class: "reason" }, el("b", {}, m.kind), ` on the ${where} at step ${m.step}: ${plural(m.elements, "element")} of ${m.of.toLocaleString("en")}, ${m.value} where float64 gives ${number(m.exact)}${m.line ? ` (${m.line})` : ""}`)),
      room ? el("dl", { class: "facts wide" }, fact("largest magnitude", `${number(room.magnitude)} in ${room.where}`),
        fact("room in float16", room.float16_bits === null ? "all zeros" : `${number(room.float16_bits)} bits`),
        fact("room in bfloat16", room.bfloat16_bits === null ? "all zeros" : `${number(room.bfloat16_bits)} bits`),
        room.lost_share ? fact("underflows to zero in float16", `${number(room.lost_share * 100)} %`) : null) : null);
  });
}
