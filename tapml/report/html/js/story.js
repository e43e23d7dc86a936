// The migration as it happened: what was tested, each check of the whole model, what moved and what stays, both answers side by side.

import { byId, el, replace } from "./dom.js";
import { targets } from "./data.js";
import { number, plural } from "./format.js";
import { badge, operatorLink } from "./panel.js";

export function drawStory() {
  const found = targets.filter(side => side.story);
  const title = el("h2", { id: "story-title" }, found.length > 1 ? "The migrations" : "The migration");
  if (!found.length) {
    replace(byId("story"), title, el("p", { class: "empty" }, "No migration was carried out. ", el("code", {}, "tapml migrate RUN --target T"),
      " tests every operator, offloads those that pass, and compares the answers."));
    return;
  }
  replace(byId("story"), title, el("div", { class: found.length > 1 ? "stories" : null }, found.map(one)));
}

function one(side) {
  const { story } = side;
  const moved = story.moved_count;
  return el("article", { class: "card" },
    el("h3", {}, side.label, story.finished ? null : el("span", { class: "badge badge-s" }, "not finished")),
    story.prompts.map((prompt, k) => answers(side, prompt, k)),
    el("ol", { class: "timeline" },
      el("li", {}, el("span", { class: "dot-mark" }), el("div", {}, el("b", {}, plural(story.tested, "operator")), " tested alone.")),
      story.events.map(event => line(event)),
      story.finished ? el("li", {}, el("span", { class: "dot-mark" }), el("div", {}, el("b", {}, moved.toLocaleString("en")), ` of ${plural(story.tested, "operator")} offloaded to ${side.target}.`)) : null),
    story.kept.length ? el("div", {}, el("h4", {}, `What stays in PyTorch (${story.kept.length})`),
      el("ul", { class: "stays" }, story.kept.slice(0, 40).map(place => stays(side, place))),
      story.kept.length > 40 ? el("p", { class: "note" }, `and ${story.kept.length - 40} more: filter the list by status`) : null) : null);
}

function stays(side, place) {
  const verdict = side.modes.isolated?.verdict(place);
  return el("li", {}, verdict ? badge(verdict.status) : null, " ", operatorLink(place), verdict?.reason ? el("p", { class: "reason" }, verdict.reason) : null);
}

function line(event) {
  const mark = passed => el("span", { class: passed ? "dot-mark good" : "dot-mark bad", "aria-hidden": "true" }, passed ? "✓" : "✕");
  if (event.kind === "check") {
    const passed = event.status === "pass";
    return el("li", {}, mark(passed), el("div", {}, `Whole model with ${plural(event.size, "operator")} on the target: `, el("b", {}, passed ? "agrees" : event.status),
      event.error === null || event.bound === null ? null : `, off by ${number(event.error / event.bound)} of the tolerance`,
      passed ? null : el("p", { class: "reason" }, event.reason)));
  }
  if (event.kind === "moved") {
    return el("li", {}, mark(true), el("div", {}, el("b", {}, plural(event.count, "operator")), " offloaded",
      event.operators.length ? [": ", event.operators.slice(0, 4).flatMap(([a, b], k) => [k ? ", " : "", operatorLink(a), a === b ? null : [" … ", operatorLink(b)]]),
        event.operators.length > 4 ? " and others" : null] : null, "."));
  }
  return el("li", {}, mark(false), el("div", {}, event.operator === null ? "An operator" : operatorLink(event.operator), " ", el("b", {}, "stays"), el("p", { class: "reason" }, event.reason)));
}

function answers(side, prompt, number_) {
  const decoder = prompt.source.length > 0;
  const share = prompt.bound ? prompt.error / prompt.bound : prompt.error;
  return el("div", { class: "answers" },
    decoder ? el("p", { class: "prompt" }, el("span", { class: "note" }, "Prompt"), prompt.text || plural(prompt.tokens, "token")) : el("p", { class: "prompt" }, el("span", { class: "note" }, "Example"), String(number_ + 1)),
    decoder ? el("div", { class: "side-by-side" },
      answer("Reference · PyTorch", prompt.source_text, prompt.source, prompt.differs_at),
      answer(`Migrated · ${side.target}`, prompt.target_text, prompt.target, prompt.differs_at)) : null,
    el("p", { class: "note" }, badge(prompt.passed ? "p" : "f"),
      decoder ? ` ${prompt.match ? "tokens equal" : `tokens differ from position ${prompt.differs_at}`} · top-1 agreement ${(prompt.agreement * 100).toFixed(1)} % ·` : "",
      ` ${decoder ? "logits" : "outputs"} off by ${number(share)} of the tolerance, the reference itself by ${number(prompt.bound ? prompt.source_error / prompt.bound : 0)}`),
    prompt.passed ? null : el("p", { class: "reason" }, prompt.reason));
}

function answer(title, text, tokens, differs) {
  return el("div", { class: "answer" }, el("p", { class: "note" }, title), text ? el("p", { class: "answer-text" }, text) : null,
    el("p", { class: text ? "tokens small" : "tokens", "aria-label": "tokens" }, tokens.map((token, k) => [
      el("span", { class: differs !== null && k >= differs ? "differs" : null }, token), " "])));
}
