// Lines of the model's code, and a folder that the page holds as an archive.

import { el } from "./dom.js";
import { DATA } from "./data.js";

export function snippetView(place) {
  const { file, first, lines, own } = DATA.snippets[place];
  return el("div", { class: "source snippet" }, el("div", { class: "source-head" }, el("span", {}, `${file}, as it is now`)),
    el("pre", { tabindex: "0" }, el("code", {}, lines.map((line, k) =>
      el("span", { class: own.includes(first + k) ? "own" : "around" }, `${String(first + k).padStart(5)}  ${line}\n`)))));
}

// The archive is made when it is asked for, from what the page holds: nothing is requested.
export function download(packed) {
  const link = el("a", { class: "download", download: packed.name, href: "#", onclick: () => {
    const bytes = Uint8Array.from(atob(packed.zip), letter => letter.charCodeAt(0));
    link.href = URL.createObjectURL(new Blob([bytes], { type: "application/zip" }));
    setTimeout(() => { URL.revokeObjectURL(link.href); link.href = "#"; }, 10_000);
  } }, `Download the reproducer (${packed.name}, ${Math.ceil(packed.bytes / 1024).toLocaleString("en")} KiB)`);
  return el("p", {}, link);
}
