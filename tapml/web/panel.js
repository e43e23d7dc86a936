// "This browser": what it is, what it is doing and how fast, and the button that makes it a device or no device.
//
//     const panel = new Panel(section, { start, stop, rename })
//     panel.draw(state, { running, failures, failure, screen, why })        state: what the worker told last, or null
//
// A device that works keeps its name: another one would take a new worker, and its client would lose what is on this one.

import { el, replace, setClass, setText, svg } from "./dom.js";
import { LIMITS, bytes, features, number, sentence, span } from "./words.js";

const SECONDS = 60;
const WIDTH = 600;
const HEIGHT = 72;
const ADVICE = {
  on: "The screen stays on while this page is a device.",
  touch: "Tap the page once to keep the screen on.",
  "": "Keep this page open and in front: browsers put pages in the background to sleep.",
};

export class Panel {
  #section;
  #actions;
  #parts = {};
  #running = true;
  #shownOffer = null;
  #last = null;
  #name = "";
  #leased = false;
  #rates = { launches: 0, received: 0, sent: 0 };
  #history = [];
  #since = null;

  constructor(section, actions) {
    this.#section = section;
    this.#actions = actions;
    this.#build();
  }

  #build() {
    const part = (name, tag, props, ...children) => (this.#parts[name] = el(tag, props, ...children));
    const tile = (name, label) => el("div", { class: "tile" }, el("dt", null, label), el("dd", null, part(name, "span", { class: "value" })), part(`${name}Total`, "dd", { class: "total" }));
    this.#parts.line = svg("path", { class: "spark-line" });
    this.#parts.area = svg("path", { class: "spark-area" });
    replace(this.#section,
      el("div", { class: "card-head" },
        el("div", { class: "grow" },
          el("h2", { id: "mine-title" }, "This browser"),
          part("name", "form", { class: "name" }),
          part("fixed", "p", { class: "note", id: "fixed", hidden: true }, "Can be renamed when its work is over.")),
        part("button", "button", { type: "button", id: "toggle", onclick: () => this.#toggle() })),
      el("div", { class: "state" },
        part("dot", "i", { class: "dot" }),
        el("div", null,
          el("div", { role: "status" }, part("word", "p", { class: "word", id: "word" }), part("text", "p", { class: "note", id: "what" })),
          part("note", "p", { class: "note", id: "note" }))),  // says another second each second, which nobody wants to have read out
      part("problem", "p", { class: "banner", id: "problem", hidden: true }),
      part("chart", "figure", { class: "spark" }),
      part("tiles", "dl", { class: "tiles" }),
      part("facts", "dl", { class: "facts" }),
      part("more", "details", { class: "more" }),
      part("advice", "p", { class: "note advice" }));
    replace(this.#parts.chart,
        svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": "Launches a second in the last minute" }, this.#parts.area, this.#parts.line),
        el("figcaption", null, el("span", null, "launches a second, last minute"), part("peak", "span", { class: "peak" })));
    replace(this.#parts.tiles, tile("launches", "Launches"), tile("received", "Received"), tile("sent", "Sent"));
    this.#buildName("");
  }

  #buildName(name) {
    const input = el("input", { id: "name", value: name, maxlength: 40, "aria-label": "Name of this device", autocomplete: "off", autocapitalize: "off", spellcheck: "false", enterkeyhint: "done" });
    const form = this.#parts.name;
    replace(form, input);
    form.onsubmit = event => {
      event.preventDefault();
      input.blur();
    };
    input.addEventListener("change", () => { input.value = this.#leased ? this.#name : this.#actions.rename(input.value); });
    this.#parts.input = input;
  }

  #toggle() {
    if (this.#running) this.#actions.stop();
    else this.#actions.start();
  }

  draw(state, { running, failures, failure, screen, why }) {
    this.#running = running;
    this.#name = state?.name ?? this.#name;
    this.#leased = Boolean(state?.lease);
    this.#measure(state);
    const parts = this.#parts;
    const [word, text, kind] = describe(state, running);
    setText(parts.word, word);
    setText(parts.text, text);
    setText(parts.note, state?.lease ? sentence(state.note) : "");
    setClass(parts.dot, `dot dot-${kind}`);
    setText(parts.button, running ? "Stop" : "Start");
    setClass(parts.button, running ? "" : "primary");
    if (state && (this.#leased || document.activeElement !== parts.input)) parts.input.value = state.name;
    parts.input.readOnly = this.#leased;
    parts.fixed.hidden = !this.#leased;
    const problem = why || problemOf(state) || (running && failures && !state ? `The device's worker failed (${failure}) and is started again.` : "");
    setText(parts.problem, problem);
    parts.problem.hidden = !problem;
    // Nothing to measure where nothing can run.
    parts.chart.hidden = parts.tiles.hidden = kind === "bad" || kind === "off";
    this.#drawRates(state);
    this.#drawOffer(state);
    const works = running && state?.connection === "connected" && state.offer?.state === "ready";
    setText(parts.advice, works ? ADVICE[screen] : "");
  }

  // The worker tells its counts about once a second.
  #measure(state) {
    const now = performance.now();
    if (!state) {
      this.#last = null;
      this.#rates = { launches: 0, received: 0, sent: 0 };
      return;
    }
    if (state.lease && !this.#since) this.#since = now;
    if (!state.lease) this.#since = null;
    const last = this.#last;
    if (last && now - last.now < 900 && state.launches >= last.launches) return;
    if (last && state.launches >= last.launches) {
      const seconds = (now - last.now) / 1000;
      for (const key of ["launches", "received", "sent"]) this.#rates[key] = Math.max(0, state[key] - last[key]) / seconds;
    }
    this.#last = { now, launches: state.launches, received: state.received, sent: state.sent };
    this.#history.push(this.#rates.launches);
    if (this.#history.length > SECONDS) this.#history.shift();
  }

  #drawRates(state) {
    const parts = this.#parts;
    const { launches, received, sent } = this.#rates;
    setText(parts.launches, `${number(launches)}/s`);
    setText(parts.received, `${bytes(received)}/s`);
    setText(parts.sent, `${bytes(sent)}/s`);
    setText(parts.launchesTotal, state ? `${number(state.launches)} in all` : "");
    setText(parts.receivedTotal, state ? `${bytes(state.received)} in all` : "");
    setText(parts.sentTotal, state ? `${bytes(state.sent)} in all` : "");
    const most = Math.max(...this.#history, 1);
    setText(parts.peak, most > 1 ? `up to ${number(most)}` : "");
    const points = this.#history.map((value, i) => {
      const x = WIDTH - (this.#history.length - 1 - i) * (WIDTH / (SECONDS - 1));
      return `${x.toFixed(1)} ${(HEIGHT - 3 - (value / most) * (HEIGHT - 8)).toFixed(1)}`;
    });
    const line = points.length > 1 ? `M${points.join("L")}` : "";
    parts.line.setAttribute("d", line);
    parts.area.setAttribute("d", line && `${line}L${WIDTH} ${HEIGHT}L${points[0].split(" ")[0]} ${HEIGHT}Z`);
  }

  #drawOffer(state) {
    const parts = this.#parts;
    const info = state?.offer?.info ?? null;
    const facts = [];
    if (info) facts.push(["GPU", info.name], ["WebGPU", [info.software ? "software driver" : "hardware", ...features(info)].join(", ")]);
    if (state?.connection === "connected" && this.#since !== null) facts.push(["In use for", span((performance.now() - this.#since) / 1000)]);
    if (state?.budget) facts.push(["Remembered", `${bytes(state.stored)} of ${bytes(state.budget)}`]);
    if (state?.lost) facts.push(["GPU lost", `${state.lost} ${state.lost === 1 ? "time" : "times"}`]);
    const text = JSON.stringify(facts);
    if (text !== parts.facts.dataset.shown) {
      parts.facts.dataset.shown = text;
      replace(parts.facts, facts.map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, value))));
    }
    const offer = JSON.stringify(info);
    if (offer === this.#shownOffer) return;
    this.#shownOffer = offer;
    parts.more.hidden = !info;
    replace(parts.more, el("summary", null, "Limits"), limits(info));
  }
}

// A table of what a device allows.
export function limits(info) {
  if (!info) return null;
  return el("dl", { class: "limits" }, LIMITS.filter(([key]) => key in info.limits)
    .map(([key, label, shown]) => el("div", null, el("dt", null, label), el("dd", null, shown(info.limits[key])))));
}

// A word, a line and a colour for the state of this device.
function describe(state, running) {
  if (!running) return ["Stopped", "This browser is no device now.", "off"];
  if (!state) return ["Starting…", "", "wait"];
  if (state.connection === "refused") return ["Refused", state.code === "version" ? `${state.why} Load this page again.` : state.why, "bad"];
  if (state.connection !== "connected") return ["Connecting…", state.why ? `${sentence(state.why)} Trying again until it answers.` : "", "wait"];
  const { state: offer } = state.offer ?? {};
  if (state.lease) return ["Working", state.lease.label || "for a client", "busy"];
  if (offer === "looking") return ["Looking…", "for a GPU", "wait"];
  if (offer === "retired") return ["GPU lost", "Connected, and waiting for the browser to give out a new one.", "bad"];
  if (offer !== "ready") return ["No WebGPU", "Connected, but nothing can run here.", "bad"];
  return ["Ready", "Waiting for work.", "ready"];
}

function problemOf(state) {
  if (state?.code === "pairing" || state?.code === "token") return "";
  if (state?.offer?.state === "absent" || state?.offer?.state === "retired") return state.offer.reason;
  return "";
}
