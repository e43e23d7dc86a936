// "Add a phone": a code that one device may use once, as a QR code, as an address and to be typed, and for how long it is good.
//
//     const pairing = new Pairing(dialog, ask)       `ask` sends "pair" to the hub
//     pairing.open(); pairing.show(fields)           the hub's answer
//     pairing.devices(devices, own)                  a new one while it is open is the phone

import { el, replace, setText } from "./dom.js";
import { span } from "./words.js";

export class Pairing {
  #dialog;
  #ask;
  #body = el("div", { class: "pairing-body" });
  #left = el("p", { class: "note", role: "timer" });
  #until = 0;
  #timer = null;
  #known = null;
  #listed = false;
  #names = new Set();

  constructor(dialog, ask) {
    this.#dialog = dialog;
    this.#ask = ask;
    dialog.addEventListener("close", () => {
      clearInterval(this.#timer);
      this.#known = null;
    });
    dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
    replace(dialog, el("div", { class: "dialog" },
      el("div", { class: "section-head" },
        el("h2", { id: "pairing-title", class: "grow" }, "Add a phone"),
        el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×")),
      this.#body));
  }

  open() {
    this.#dialog.showModal();
    this.#begin();
  }

  #begin() {
    this.#known = new Set(this.#names);
    replace(this.#body, el("p", { class: "note" }, "Asking the hub for a code…"));
    this.#ask();
  }

  show({ code, url, svg, seconds }) {
    if (!this.#dialog.open) return;
    this.#until = performance.now() + 1000 * seconds;
    const picture = el("img", { class: "qr", alt: `QR code of ${url}`, src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}` });
    replace(this.#body,
      warning(url),
      el("p", null, "Scan this with the phone's camera and open the page. It becomes a device at once."),
      picture,
      el("p", { class: "code", id: "code" }, code),
      el("p", { class: "url" }, url),
      this.#left,
      url.startsWith("https:") ? el("p", { class: "note" }, "If the hub made its certificate itself, the phone asks once whether to trust it.") : null);
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#tick(), 1000);
    this.#tick();
  }

  #tick() {
    const left = (this.#until - performance.now()) / 1000;
    if (left > 0) {
      setText(this.#left, `Good for one device, for ${span(left)} more.`);
      return;
    }
    clearInterval(this.#timer);
    replace(this.#body, el("p", null, "This code is too old now."), el("button", { type: "button", class: "primary", onclick: () => this.#ask() }, "New code"));
  }

  // `own` is this browser's name, which is no phone that came.
  devices(devices, own) {
    this.#names = new Set(devices.filter(device => device.state !== "away").map(device => device.name));
    if (!this.#listed && this.#known) this.#known = new Set(this.#names);  // it was opened before there was a list
    this.#listed = true;
    if (!this.#known) return;
    const came = [...this.#names].find(name => name !== own && !this.#known.has(name));
    if (!came) return;
    clearInterval(this.#timer);
    this.#known = null;
    replace(this.#body,
      el("p", { class: "word" }, `${came} is here`),
      el("p", { class: "note" }, "It is in the list, and can be given work."),
      el("button", { type: "button", onclick: () => this.#begin() }, "Add another"),
      el("button", { type: "button", class: "primary", onclick: () => this.#dialog.close() }, "Done"));
  }
}

// A phone cannot come to an address that only this machine has.
function warning(url) {
  const { hostname, protocol } = new URL(url);
  if (/^(localhost|127\..*|\[::1\])$/.test(hostname)) {
    return el("p", { class: "banner" }, "This hub listens on its own machine only, where no phone comes. Start it with ", el("code", null, "tapml hub --host 0.0.0.0"), ".");
  }
  return protocol === "https:" ? null : el("p", { class: "banner" }, "Browsers have WebGPU on HTTPS pages only, and this hub has no certificate.");
}
