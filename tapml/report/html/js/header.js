// The first screen: what this is about, how it went on each target, and what was not checked.

import { byId, el, replace } from "./dom.js";
import { DATA, targets } from "./data.js";
import { STATUS, number, plural, when } from "./format.js";
import { ordered, set } from "./state.js";
import { isDark, toggleTheme } from "./theme.js";

const HINTS = 6;
const ORDER = [["fail", "f"], ["flaky", "l"], ["error", "e"], ["crash", "c"], ["unchecked", "u"], ["skipped", "s"], ["pass", "p"]];

export function drawTop(help) {
  const { run } = DATA;
  const calls = Object.entries(run.calls ?? {}).map(([graph, count]) => plural(count, `${graph} call`)).join(", ");
  replace(byId("top"),
    el("div", { class: "bar" }, el("p", { class: "brand" }, "TapML", el("span", {}, "report")),
      el("div", { class: "bar-buttons" },
        el("button", { type: "button", id: "theme", "aria-label": isDark() ? "Use light colours" : "Use dark colours", title: "Light or dark (t)", onclick: toggleTheme }, isDark() ? "☀" : "☾"),
        el("button", { type: "button", "aria-label": "Keys", title: "Keys (?)", onclick: help }, "?"))),
    el("h1", {}, run.name),
    el("p", { class: "lead" }, headline()),
    el("ul", { class: "run-facts" }, [
      plural(run.operators, "operator"), `${run.signatures.toLocaleString("en")} different`, `${plural(run.cases, "recorded call")} kept${run.calls_seen ? ` of ${run.calls_seen.toLocaleString("en")}` : ""}`,
      calls, run.dtype, weights(run), run.decoder ? `cache of ${run.decoder.max_len}` : null, `carved by TapML ${run.version}`,
    ].filter(Boolean).map(text => el("li", {}, text))));
}

// "Q4_1 weights, computed in float32": what the weights were stored as, where the model is computed in something else.
function weights(run) {
  if (!run.weights) return null;
  return typeof run.weights === "string" ? (run.weights.includes(" ") ? run.weights : `${run.weights} weights, computed in ${run.dtype}`) : null;
}

function headline() {
  if (!targets.length) return "Carved, and not yet run on any target. Shown is the reference’s own error against float64.";
  return ordered.map(side => {
    const counts = side.summary.isolated ?? side.summary.cumulative;
    const total = Object.values(counts).reduce((a, b) => a + b, 0);
    const bad = total - counts.pass;
    const tested = bad ? `${bad.toLocaleString("en")} of ${plural(total, "operator")} did not pass on ${side.label}` : `all ${plural(total, "tested operator")} pass on ${side.label}`;
    const answers = side.story?.prompts ?? [];
    const said = !answers.length ? "" : answers.every(p => p.passed) ? ", and it answers as PyTorch does" : ", and it does not answer as PyTorch does";
    return tested + said;
  }).map((text, k) => (k ? text : text[0].toUpperCase() + text.slice(1))).join("; ") + ".";
}

export function drawSummary() {
  const more = DATA.unchecked.length - HINTS;
  replace(byId("summary"), el("div", { class: "cards" }, ordered.map(card),
    DATA.unchecked.length ? el("article", { class: "card hints" }, el("h2", {}, "Not checked"),
      el("ul", {}, DATA.unchecked.slice(0, HINTS).map(line => el("li", {}, line.what))),
      el("a", { href: "#unchecked" }, more > 0 ? `Why, and ${more} more` : "Why, and what to do")) : null),
    DATA.left_out.length ? el("p", { class: "warning" }, `To keep this file small, it does not hold ${DATA.left_out.join("; ")}.`) : null);
}

function card(side) {
  const { story } = side;
  const moved = story?.moved_count;
  const prompts = story?.prompts ?? [];
  const worst = prompts.reduce((a, p) => Math.max(a, p.bound ? p.error / p.bound : p.error ? Infinity : 0), 0);
  const tokens = prompts.reduce((sum, p) => sum + p.source.length, 0);
  const equal = prompts.reduce((sum, p) => sum + p.source.filter((token, k) => token === p.target[k]).length, 0);
  const facts = [
    story ? ["offloaded", story.finished ? `${moved.toLocaleString("en")} of ${story.tested.toLocaleString("en")}` : "not finished"] : ["offloaded", "not migrated"],
    story?.kept.length ? ["stay in PyTorch", story.kept.length.toLocaleString("en")] : null,
    tokens ? ["tokens equal", `${equal} of ${tokens}`] : null,
    prompts.length ? [tokens ? "logits" : "outputs", `${number(worst)}× the tolerance`] : null,
  ].filter(Boolean);
  return el("article", { class: "card target" },
    el("div", { class: "target-head" }, el("h2", {}, side.label), side.injected ? el("span", { class: "badge badge-l" }, side.fault ? `with the fault ${side.fault}` : "with an injected fault") : null),
    el("p", { class: "device" }, side.device ? [el("b", {}, side.device.name), el("br"), side.device.driver, side.device.software ? " · in software" : ""] : "Which device it was is not recorded."),
    Object.entries(side.summary).map(([mode, counts]) => bar(side, mode, counts)),
    el("dl", { class: "facts" }, facts.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))),
    el("p", { class: "note" }, when(side.time) ?? "Date not recorded"));
}

function bar(side, mode, counts) {
  const total = Object.values(counts).reduce((a, b) => a + b, 0);
  const found = ORDER.filter(([word]) => counts[word]);
  return el("div", { class: "counts" },
    el("p", { class: "counts-title" }, mode === "isolated" ? "Operators alone" : "Operators in the model", el("span", { class: "note" }, plural(total, "verdict"))),
    el("div", { class: "stack", "aria-hidden": "true" }, found.map(([word, letter]) => el("i", { class: `fill-${letter}`, style: { "flex-grow": String(counts[word] / total), "min-width": "5px" } }))),
    el("ul", { class: "stack-key" }, found.map(([word, letter]) => el("li", {}, el("button", {
      type: "button", title: `Show these in the list`, onclick: () => {
        set({ side: side.place, mode, statuses: new Set([letter]), view: "one" });
        document.getElementById("map").scrollIntoView();
      } }, el("i", { class: `key key-${letter}`, "aria-hidden": "true" }, STATUS[letter].mark), `${counts[word].toLocaleString("en")} ${word}`)))));
}

export function drawUnchecked() {
  replace(byId("unchecked"), el("h2", { id: "unchecked-title" }, "What was not checked"),
    DATA.unchecked.length ? el("ul", { class: "unchecked" }, DATA.unchecked.map(line => el("li", {}, el("b", {}, line.what), " ", line.why,
      line.command ? el("code", { class: "command" }, line.command) : null))) : el("p", {}, "Nothing that this report knows of."));
  replace(byId("foot"), el("p", {}, `Made by TapML ${DATA.made_by} from `, el("code", { class: "path" }, DATA.run.path), DATA.other ? [" and ", el("code", { class: "path" }, DATA.other.path)] : "",
    ". Everything is in this file: opening it asks nobody for anything."));
}

