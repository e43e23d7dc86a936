// Programs of an operator: each launch with its sizes, and its source, highlighted when the report was written.

import { el } from "./dom.js";
import { DATA } from "./data.js";
import { plural } from "./format.js";

// `open`: with every kernel unfolded.
export function programView(place, open = false) {
  const program = DATA.kernels.programs[place];
  if (!program.steps.length) {
    return el("p", { class: "note" }, "Nothing is launched: each output is an input, handed on.");
  }
  return el("div", {},
    el("p", { class: "note" }, plural(program.steps.length, "launch"), program.schedule ? ` · schedule ${program.schedule}` : "",
      program.scratch.length ? ` · scratch ${program.scratch.map(n => `${n.toLocaleString("en")} B`).join(", ")}` : ""),
    program.steps.map(([kernel, args], k) => launch(DATA.kernels.kernels[kernel], args, open || program.steps.length === 1)));
}

function launch(kernel, args, open) {
  const groups = kernel.grid.reduce((a, b) => a * b, 1), threads = kernel.block.reduce((a, b) => a * b, 1);
  return el("details", { class: "kernel", open },
    el("summary", {}, el("code", {}, kernel.entry), el("span", { class: "sizes" },
      `grid ${kernel.grid.join(" × ")} · block ${kernel.block.join(" × ")}`)),
    el("p", { class: "note" }, `${plural(groups, "workgroup")} of ${threads.toLocaleString("en")}${args.length ? `; arguments: ${args.join(", ")}` : ""}`),
    source(DATA.kernels.texts[kernel.text]));
}

function source(text) {
  if (text.left_out) return el("p", { class: "note" }, "The source was left out to keep this file below its size.");
  const code = el("code", {});
  let place = 0;
  for (let k = 0; k < text.marks.length; k += 2) {
    const part = text.source.slice(place, place += text.marks[k]);
    code.append(text.marks[k + 1] === "o" ? part : el("span", { class: `t-${text.marks[k + 1]}` }, part));
  }
  const copy = el("button", { type: "button", class: "copy", onclick: () => {
    navigator.clipboard?.writeText(text.source).then(() => { copy.textContent = "copied"; }, () => { copy.textContent = "not allowed"; });
  } }, "copy");
  return el("div", { class: "source" }, el("div", { class: "source-head" }, el("span", {}, text.language), copy), el("pre", { tabindex: "0" }, code));
}
