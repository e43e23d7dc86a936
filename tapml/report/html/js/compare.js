// Two sides: the table of operators whose status differs, or whose error is at least twice the other's.

import { byId, el, replace } from "./dom.js";
import { cellColour, inkOn } from "./colour.js";
import { DATA, operators, sides } from "./data.js";
import { ofBound, number, plural } from "./format.js";
import { badge, operatorLink } from "./panel.js";
import { state, verdictOf } from "./state.js";

const ROWS = 25;
// Below this share of the tolerance all errors count as alike: twice nothing is nothing.
const ALIKE = 0.05;

// { status: whether the statuses differ, log2: how many times larger the second's ratio is, as a power of two; null without numbers }.
export function difference(a, b) {
  const status = a.status !== b.status && !(["r", "p"].includes(a.status) && ["r", "p"].includes(b.status));
  if (a.ratio === null || b.ratio === null) return { status, log2: null };
  if (a.ratio === b.ratio) return { status, log2: 0 };
  const floor = ratio => Math.min(Math.max(ratio, ALIKE), 1e9);
  return { status, log2: Math.log2(floor(b.ratio) / floor(a.ratio)) };
}

export function drawCompare() {
  const host = byId("compare");
  if (state.view === "one") return replace(host);
  const [a, b] = [sides[state.side], sides[state.other]];
  const pairs = operators.map(operator => {
    const first = verdictOf(operator.place, a.place), second = verdictOf(operator.place, b.place);
    return { operator, first, second, ...difference(first, second) };
  });
  const both = pairs.filter(row => row.first.status !== "." && row.second.status !== ".");
  const lacking = pairs.filter(row => (row.first.status === ".") !== (row.second.status === ".")).length;
  const rows = both.filter(row => row.status || Math.abs(row.log2 ?? 0) >= 1);
  rows.sort((x, y) => Number(y.status) - Number(x.status) || Math.abs(y.log2 ?? 0) - Math.abs(x.log2 ?? 0));
  const statuses = rows.filter(row => row.status).length;
  const cell = found => {
    const colour = cellColour(found);
    return el("td", {}, found.ratio === null ? null : el("span", { class: "chip", style: { background: colour, color: inkOn(colour) } }, ofBound(found)), " ",
      ["r", "p"].includes(found.status) ? null : badge(found.status));
  };
  const other = DATA.other;
  replace(host, el("section", { class: "card compare" },
    el("h3", {}, `${a.label} and ${b.label}`),
    el("p", { class: "note" }, !both.length ? "No operator was tested on both in this mode." : rows.length
      ? `${plural(statuses, "operator")} with another status; ${plural(rows.length - statuses, "operator")} of one status with an error at least twice the other’s (what is below a twentieth of the tolerance counts as the same).`
      : "Every operator has the same status on both, and no error is twice the other’s."),
    lacking && both.length ? el("p", { class: "note" }, `${plural(lacking, "operator")} with a verdict on one of them only.`) : null,
    other && (a.run || b.run) ? el("p", { class: "note" }, other.same_run ? "Both runs are the same recording." :
      `The runs are not the same recording: ${plural(other.only_here.length, "operator")} only in the first, ${other.only_there.length} only in the second, ${other.changed.length} of another signature.`) : null,
    rows.length ? el("div", { class: "scroll" }, el("table", { class: "steps" },
      el("thead", {}, el("tr", {}, ["operator", a.label, b.label, "times"].map(text => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows.slice(0, ROWS).map(row => el("tr", {}, el("td", {}, operatorLink(row.operator.place)), cell(row.first), cell(row.second),
        el("td", {}, row.log2 === null ? "–" : `${number(2 ** Math.abs(row.log2))}× ${row.log2 > 0 ? "▲" : row.log2 < 0 ? "▼" : ""}`)))))) : null,
    rows.length > ROWS ? el("p", { class: "note" }, `and ${rows.length - ROWS} more`) : null));
}
