// A WebSocket to the hub that is made anew whenever it breaks, for ever: what the page and its worker stand on.
//
//     const connection = new Connection(() => hello, { welcome, message, changed }, "/wire")
//     connection.start()                 `hello()` is the map of docs/wire.md, asked for at each attempt
//     connection.send(data)              to the connection of the moment; without one it is dropped
//     connection.nudge()                 the network is back, or the page is: try at once
//     connection.stop()
//
// `welcome(fields)` is told each time that it is let in, `message(decoded)` what comes (pings are answered here), `changed()` when `state` is
// another: "connecting", "connected", "refused" or "stopped". `why` says in words what the matter is.

import { Malformed, control, decode } from "./wire.js";

const FIRST_PAUSE = 100;
const LONGEST_PAUSE = 5000;
const REFUSED_PAUSE = 30000;
const OPEN_MILLISECONDS = 10000;
const SILENT_HEARTBEATS = 3;

// What the hub may think otherwise about at once. For the other codes somebody has to do something first, and for a pairing code that was used
// nothing helps: trying it again would only count as guessing.
const PASSING = new Set(["busy", "full", "size", "protocol"]);
const FINAL = "pairing";

export class Connection {
  state = "stopped";
  why = "";
  code = "";
  received = 0;
  sent = 0;
  #hello;
  #handlers;
  #path;
  #socket = null;
  #welcomed = false;
  #heard = 0;
  #silence = OPEN_MILLISECONDS;
  #pause = FIRST_PAUSE;
  #timer = null;
  #watch = null;

  constructor(hello, handlers, path = "/wire") {
    this.#hello = hello;
    this.#handlers = handlers;
    this.#path = path;
  }

  start() {
    if (this.state === "stopped") this.#connect();
  }

  stop() {
    this.#drop();
    this.#become("stopped", "");
  }

  send(data) {
    if (!this.#welcomed) return;
    this.#socket.send(data);
    this.sent += data.length;
  }

  // A connection that is there is left alone, unless nothing was heard for longer than usual.
  nudge() {
    if (this.state === "stopped" || this.state === "connected") {
      this.#checkSilence(1.5 / SILENT_HEARTBEATS);
      return;
    }
    this.#pause = FIRST_PAUSE;
    if (this.#timer !== null) this.#connect();
  }

  #connect() {
    this.#drop();
    this.#become("connecting", this.why);
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}${this.#path}`);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#heard = performance.now();
    this.#silence = OPEN_MILLISECONDS;
    this.#watch = setInterval(() => this.#checkSilence(), 500);
    const mine = handle => event => { if (socket === this.#socket) handle(event); };
    socket.addEventListener("open", mine(() => this.#put(control("hello", this.#hello()))));
    socket.addEventListener("message", mine(event => this.#take(event.data)));
    socket.addEventListener("close", mine(event => this.#broken(event.reason)));
  }

  #take(data) {
    this.#heard = performance.now();
    try {
      if (!(data instanceof ArrayBuffer)) throw new Malformed("a text message");
      this.received += data.byteLength;
      this.#handle(decode(new Uint8Array(data)));
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      this.#broken(`the hub sent something that is not understood here (${error.message})`);
    }
  }

  #handle(message) {
    const [first, second] = message.arguments ?? [];
    if (message.name === "ping") this.#put(control("pong", first));
    else if (message.name === "refused") this.#refused(first, second);
    else if (this.#welcomed) this.#handlers.message(message);
    else if (message.name === "welcome") {
      this.#welcomed = true;
      this.#pause = FIRST_PAUSE;
      this.#silence = SILENT_HEARTBEATS * 1000 * Math.max(0.1, first.heartbeat);
      this.#become("connected", "");
      this.#handlers.welcome(first);
    } else throw new Malformed(`${message.name} before welcome`);
  }

  #put(data) {
    this.#socket.send(data);
    this.sent += data.length;
  }

  #refused(code, text) {
    if (PASSING.has(code)) {
      this.#broken(text);
      return;
    }
    this.#drop();
    this.#become("refused", text, code);
    if (code !== FINAL) this.#later(REFUSED_PAUSE);
  }

  #checkSilence(share = 1) {
    if (this.#socket && performance.now() - this.#heard > share * this.#silence) {
      this.#broken(this.#welcomed ? "the hub fell silent" : "the hub does not answer");
    }
  }

  #broken(why) {
    this.#drop();
    this.#become("connecting", why || "the connection to the hub broke");
    this.#later(this.#pause);
    this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE);
  }

  #later(milliseconds) {
    this.#timer = setTimeout(() => this.#connect(), milliseconds);
  }

  #drop() {
    clearTimeout(this.#timer);
    clearInterval(this.#watch);
    const socket = this.#socket;
    this.#timer = this.#socket = null;
    this.#welcomed = false;
    socket?.close();
  }

  #become(state, why, code = "") {
    if (state === this.state && why === this.why) return;
    this.state = state;
    this.why = why;
    this.code = code;
    this.#handlers.changed();
  }
}
