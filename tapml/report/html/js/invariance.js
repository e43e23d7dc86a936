// Which operators give other bits in another run, or for the same row in another place.

import { byId, el, replace } from "./dom.js";
import { operators, sides } from "./data.js";
import { number, plural } from "./format.js";
import { operatorLink } from "./panel.js";

const SHOWN = 50;

export function drawInvariance() {
  const found = sides.filter(side => side.invariance);
  byId("invariance").hidden = !found.length;
  if (!found.length) {
    replace(byId("invariance"));
    return;
  }
  const places = new Map(operators.map(operator => [operator.name, operator.place]));
  const name = operator => places.has(operator) ? operatorLink(places.get(operator)) : operator;
  replace(byId("invariance"), el("h2", { id: "invariance-title" }, "The same bits"), found.map(side => {
    const { invariance } = side;
    return el("article", { class: "card" }, el("h3", {}, side.label),
      el("p", {}, `${plural(invariance.calls, "recorded call")} of ${plural(invariance.operators, "operator")}, ${invariance.repeat} runs each; rows of ${plural(invariance.with_rows, "operator")} in other places and chunks.`),
      listed("Not deterministic", invariance.not_deterministic, "runs", name), listed("Depends on the batch", invariance.depends_on_batch, "rows", name),
      invariance.not_run.length ? el("ul", { class: "stays" }, invariance.not_run.slice(0, SHOWN).map(left => el("li", {}, name(left.operator), ` was not repeated: ${left.reason}`))) : null);
  }));
}

function listed(title, spreads, unit, name) {
  if (!spreads.length) return el("p", {}, `${title}: none.`);
  return [el("h4", {}, title), el("div", { class: "scroll" }, el("table", { class: "steps" },
    el("thead", {}, el("tr", {}, ["operator", "what", `${unit} that differ`, "largest difference", "over the tolerance"].map(t => el("th", { scope: "col" }, t)))),
    el("tbody", {}, spreads.slice(0, SHOWN).map(s => el("tr", {}, el("td", {}, name(s.operator)), el("td", {}, s.what),
      el("td", {}, `${s.differing} of ${s.compared}`), el("td", {}, number(s.difference)), el("td", {}, number(s.of_bound)))))))];
}
