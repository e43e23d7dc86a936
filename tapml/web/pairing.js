// "Add a phone": a code that one device may use once, as a QR code, as an address and to be typed, and for how long it is good.
//
//     const pairing = new Pairing(dialog, ask)       `ask` sends "pair" to the hub, if there is a connection
//     pairing.open(); pairing.show(fields)           the hub's answer
//     pairing.devices(devices, own)                  a browser that is new while it is open may be the phone: said beside the code
//     pairing.setLink(state, why)                    how it stands with the hub
//     pairing.again()                                the connection to the hub is a new one: a hub that was restarted knows no older code

import { el, replace, setText } from "./dom.js";
import { sentence, span } from "./words.js";

export class Pairing {
  #dialog;
  #ask;
  #code = el("div", { class: "pairing-body" });
  #came = el("div", { class: "pairing-came", role: "status" });
  #left = el("p", { class: "note", role: "timer" });
  #close;
  // Why no code can be had now.
  #trouble = "";
  #until = 0;
  #timer = null;
  // The browsers that were there before; null while nobody is waited for.
  #known = null;
  #listed = false;
  #names = [];

  constructor(dialog, ask) {
    this.#dialog = dialog;
    this.#ask = ask;
    dialog.addEventListener("close", () => {
      if (dialog.open) return;  // again, before this was told
      clearInterval(this.#timer);
      this.#known = null;
    });
    dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
    this.#close = el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×");
    replace(dialog, el("div", { class: "dialog" },
      el("div", { class: "section-head" }, el("h2", { id: "pairing-title", class: "grow" }, "Add a phone"), this.#close),
      this.#came, this.#code));
  }

  open() {
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#known = new Set(this.#names);
    this.#fill(this.#came);
    this.again();
  }

  again() {
    if (!this.#dialog.open) return;
    clearInterval(this.#timer);
    if (this.#trouble) this.#fill(this.#code, el("p", { class: "banner" }, this.#trouble));
    else {
      this.#fill(this.#code, el("p", { class: "note" }, "Asking the hub for a code…"));
      this.#ask();
    }
  }

  setLink(state, why) {
    const words = state === "refused" ? [why] : ["The hub does not answer.", sentence(why), "A code comes when it is back."];
    this.#trouble = state === "connected" ? "" : words.filter(Boolean).join(" ");
    if (this.#trouble) this.again();
  }

  show({ code, url, svg, seconds }) {
    if (!this.#dialog.open) return;
    this.#until = performance.now() + 1000 * seconds;
    const picture = el("img", { class: "qr", alt: `QR code of ${url}`, src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}` });
    this.#fill(this.#code,
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
    this.#fill(this.#code, el("p", null, "This code is too old now."), el("button", { type: "button", class: "primary", onclick: () => this.again() }, "New code"));
  }

  // `own` is this browser's name, which is no phone that came. The others may come back after the hub was restarted, and are not new.
  devices(devices, own) {
    this.#names = devices.filter(device => device.kind === "browser" && device.state !== "away").map(device => device.name);
    if (!this.#listed && this.#known) this.#known = new Set(this.#names);  // it was opened before there was a list
    this.#listed = true;
    if (!this.#known) return;
    const came = this.#names.filter(name => name !== own && !this.#known.has(name)).at(-1);
    if (!came) return;
    for (const name of this.#names) this.#known.add(name);
    this.#fill(this.#came,
      el("p", null, el("b", null, `${came} is here.`), " It is in the list, and can be given work. For another one:"),
      el("button", { type: "button", onclick: () => this.open() }, "New code"),
      el("button", { type: "button", class: "primary", onclick: () => this.#dialog.close() }, "Done"));
  }

  // What held the focus may be gone with what is replaced.
  #fill(node, ...children) {
    const held = node.contains(document.activeElement);
    replace(node, ...children);
    if (held) this.#close.focus();
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
