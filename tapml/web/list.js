// All devices at the hub, live: what each is, what it runs, for whom and how fast.
//
//     const list = new DeviceList(section, { addPhone })
//     list.draw(devices)             the maps of the hub's "devices" message
//     list.setOwn(name)              which of them is this browser
//     list.setLink(state, why)       how it stands with the hub: what is shown may be old

import { el, replace, setClass, setText, svg } from "./dom.js";
import { limits } from "./panel.js";
import { bytes, features, number, span } from "./words.js";

const STATES = { idle: "ready", busy: "working", away: "away", retired: "retired", looking: "looking", nothing: "nothing to offer" };
const ORDER = ["busy", "idle", "retired", "away"];

export class DeviceList {
  #rows = new Map();
  #devices = [];
  #own = "";
  #list;
  #count;
  #empty;
  #stale;

  constructor(section, { addPhone }) {
    this.#count = el("p", { class: "note", id: "count", role: "status" });
    this.#stale = el("p", { class: "banner", hidden: true });
    this.#list = el("ul", { class: "devices", id: "devices" });
    this.#empty = el("div", { class: "card empty" },
      el("p", { class: "word" }, "No devices yet"),
      el("p", { class: "note" }, "Run ", el("code", null, "tapml agent"), " on another machine, or add a phone."));
    replace(section,
      el("div", { class: "section-head" },
        el("div", { class: "grow" }, el("h2", { id: "all-title" }, "Devices"), this.#count),
        el("button", { type: "button", class: "primary", id: "add", onclick: addPhone }, "Add a phone")),
      this.#stale, this.#list, this.#empty);
  }

  setOwn(name) {
    if (name === this.#own) return;
    this.#own = name;
    this.#redraw();
  }

  setLink(state, why) {
    this.#stale.hidden = state === "connected";
    setText(this.#stale, state === "refused" ? why : `The hub does not answer: what is shown may be old.${why ? ` (${why})` : ""}`);
    setClass(this.#list, state === "connected" ? "devices" : "devices stale");
  }

  draw(devices) {
    this.#devices = [...devices].sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || a.name.localeCompare(b.name, "en", { numeric: true }));
    this.#redraw();
  }

  #redraw() {
    const devices = this.#devices;
    const working = devices.filter(device => device.state === "busy").length;
    setText(this.#count, devices.length ? `${devices.length} ${devices.length === 1 ? "device" : "devices"}, ${working} working` : "");
    this.#empty.hidden = devices.length > 0;
    const names = new Set(devices.map(device => device.name));
    for (const [name, row] of this.#rows) {
      if (names.has(name)) continue;
      row.node.remove();
      this.#rows.delete(name);
    }
    devices.forEach((device, i) => {
      if (!this.#rows.has(device.name)) this.#rows.set(device.name, new Row());
      const { node } = this.#rows.get(device.name);
      if (this.#list.children[i] !== node) this.#list.insertBefore(node, this.#list.children[i] ?? null);
      this.#rows.get(device.name).draw(device, device.name === this.#own);
    });
  }
}

class Row {
  #parts = {};
  #shown = "";

  constructor() {
    const part = (name, tag, props) => (this.#parts[name] = el(tag, props));
    this.node = el("li", { class: "card device" },
      el("div", { class: "device-head" },
        part("icon", "span", { class: "icon", "aria-hidden": "true" }),
        el("div", { class: "grow" }, part("name", "p", { class: "device-name" }), part("system", "p", { class: "note" })),
        part("badge", "span", { class: "badge" })),
      part("work", "div", { class: "work" }),
      part("rates", "p", { class: "rates" }),
      part("offers", "ul", { class: "offers" }));
  }

  draw(device, own) {
    const parts = this.#parts;
    const text = JSON.stringify([device, own], (key, value) => (key === "seconds" ? Math.floor(value) : value));
    if (text === this.#shown) return;
    this.#shown = text;
    const { state } = device;
    this.node.dataset.name = device.name;
    this.node.dataset.state = state;
    setClass(this.node, `card device device-${state in STATES ? state : "idle"}`);
    if (!parts.icon.firstChild) parts.icon.append(icon(device.kind));
    replace(parts.name, device.name, own ? el("span", { class: "own" }, "this browser") : null);
    setText(parts.system, device.system);
    const shown = standing(device);
    setText(parts.badge, STATES[shown] ?? shown);
    setClass(parts.badge, `badge badge-${shown}`);
    this.#drawWork(device);
    this.#drawOffers(device.offers);
  }

  #drawWork(device) {
    const parts = this.#parts;
    parts.work.hidden = device.state !== "busy" && !device.waiting;
    const lines = [];
    if (device.state === "busy") {
      lines.push(el("p", { class: "label" }, device.label || "a client", device.target ? el("span", { class: "chip" }, device.target) : null));
      lines.push(el("p", { class: "note" }, [device.doing, device.note, `for ${span(device.seconds)}`].filter(Boolean).join(" · ")));
    }
    if (device.waiting) lines.push(el("p", { class: "note" }, `${device.waiting} ${device.waiting === 1 ? "client waits" : "clients wait"}`));
    replace(parts.work, lines);
    const busy = device.state === "busy";
    const rates = busy ? [`${number(device.launches_per_s)} launches/s`, `${bytes(device.bytes_per_s)}/s`] : [];
    rates.push(`${number(device.launches)} launches in all`);
    if (device.stored) rates.push(`${bytes(device.stored)} remembered`);
    replace(parts.rates, rates.map(rate => el("span", null, rate)));
  }

  #drawOffers(offers) {
    const text = JSON.stringify(offers);
    if (this.#parts.offers.dataset.shown === text) return;
    this.#parts.offers.dataset.shown = text;
    replace(this.#parts.offers, Object.entries(offers).map(([target, { state, info, reason }]) => {
      const head = [el("span", { class: `chip chip-${state}` }, target), el("span", { class: "offer-text" }, info ? info.name : `${state}${reason ? `: ${reason}` : ""}`)];
      if (!info) return el("li", { class: "offer" }, head);
      const facts = [info.driver, info.software ? "software driver" : "", ...features(info)].filter(Boolean).join(" · ");
      return el("li", null, el("details", null, el("summary", { class: "offer" }, head), el("p", { class: "note" }, facts), limits(info)));
    }));
  }
}

// Its state, and of one that is idle whether anything can run on it.
function standing({ state, offers }) {
  const found = Object.values(offers).map(offer => offer.state);
  if (state !== "idle" || found.includes("ready")) return state;
  return found.includes("looking") ? "looking" : "nothing";
}

function icon(kind) {
  const path = kind === "browser"
    ? "M4 5h16v14H4zM4 9h16M6.7 7h.01M9 7h.01"
    : "M3.5 5h17v10.5h-17zM8 19.5h8M12 15.5v4M7 8.5l2 1.8-2 1.8M11 12.2h3";
  return svg("svg", { viewBox: "0 0 24 24", width: 22, height: 22 }, svg("path", { d: path, fill: "none", stroke: "currentColor", "stroke-width": 1.6, "stroke-linecap": "round", "stroke-linejoin": "round" }));
}
