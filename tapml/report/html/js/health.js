// Numeric health: who first made an overflow, NaN or infinity, and which operators have the least room in float16.

import { byId, el, replace } from "./dom.js";
import { operators, sides } from "./data.js";
import { number, plural } from "./format.js";
import { operatorLink } from "./panel.js";

export function drawHealth() {
  // What a target's health says of the source is what the source's own says.
  const found = sides.filter(side => side.health && !(side.isSource && sides.some(other => other.health && !other.isSource)));
  if (!found.length) {
    replace(byId("health"));
    byId("health").hidden = true;
    return;
  }
  replace(byId("health"), el("h2", { id: "health-title" }, "Numeric health"), found.map(side => {
    const { health } = side;
    const rows = (health.headroom ?? []).slice(0, 12);
    const places = new Map(operators.map(operator => [operator.name, operator.place]));
    const made = ["source", "target"].flatMap(where => (health[where]?.made ?? []).map(m => [where, m]));
    return el("article", { class: "card" }, el("h3", {}, side.label),
      made.length ? el("ul", { class: "stays" }, made.slice(0, 20).map(([where, m]) => el("li", {}, el("b", {}, m.kind), ` on the ${where === "source" ? "source" : side.label}, step ${m.step}: `,
        places.has(m.operator) ? operatorLink(places.get(m.operator)) : m.operator, el("span", { class: "note" }, ` ${plural(m.elements, "element")} of ${m.of.toLocaleString("en")}`))))
        : el("p", {}, "No overflow, NaN or infinity, and nothing that underflowed to zero, in any operator that was watched."),
      rows.length ? [el("h4", {}, "Least room in float16"), el("div", { class: "scroll" }, el("table", { class: "steps" },
        el("thead", {}, el("tr", {}, ["operator", "largest magnitude", "in", "bits of room"].map(t => el("th", { scope: "col" }, t)))),
        el("tbody", {}, rows.map(h => el("tr", {}, el("td", {}, places.has(h.operator) ? operatorLink(places.get(h.operator)) : h.operator),
          el("td", {}, number(h.magnitude)), el("td", {}, h.where), el("td", {}, h.float16_bits === null ? "–" : number(h.float16_bits)))))))] : null);
  }));
}
