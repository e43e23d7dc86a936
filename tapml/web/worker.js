// The device itself, in a worker, so that neither a page that draws nor one that is scrolled holds it up: the WebSocket to the hub, the session of the
// moment, and the GPU.
//
//     from the page:  {kind: "start", token, pair, path, name, system, browser}     {kind: "nudge"}     {kind: "ping"}
//     to the page:    {kind: "state", …}, each second and when something changed; {kind: "paired", token}; {kind: "pong"};
//                     {kind: "failed", text} before it is given up
//
// The page starts a new worker when this one fails; that one has a new `boot`, by which the hub's clients see that nothing is left of a session.

import { Channel } from "./channel.js";
import { Connection } from "./connection.js";
import { Platform } from "./platform.js";
import { Serving } from "./serving.js";
import { Session } from "./session.js";
import { Store } from "./store.js";
import { VERSION, control } from "./wire.js";

const TICK_MILLISECONDS = 1000;
// A session waits this long for the hub to come back.
const AWAY_MILLISECONDS = 120000;
// A request that takes longer than this is mentioned.
const LONG_MILLISECONDS = 5000;

const boot = crypto.getRandomValues(new Uint8Array(16));
let settings = null;
let credentials = {};
let connection = null;
let platform = null;
let store = null;
let serving = null;
let before = Promise.resolve();
let lease = null;
let launchesBefore = 0;
let sessions = 0;
let name = "";
let awaySince = performance.now();
let told = "";

self.addEventListener("message", ({ data }) => {
  if (data.kind === "start") start(data);
  else if (data.kind === "nudge") connection?.nudge();
  else if (data.kind === "ping") self.postMessage({ kind: "pong" });
});

// Whatever was not foreseen: the page starts a new worker.
self.addEventListener("unhandledrejection", event => self.postMessage({ kind: "failed", text: String(event.reason?.stack ?? event.reason) }));

async function start(given) {
  settings = given;
  credentials = given.pair ? { pair: given.pair } : { token: given.token };
  name = given.name;
  platform = new Platform(given.browser, () => {
    connection?.send(control("offers", platform.offers));
    changed();
  });
  connection = new Connection(hello, { welcome, message, changed }, given.path);
  platform.look();
  store = await Store.open();
  connection.start();
  setInterval(tick, TICK_MILLISECONDS);
}

function hello() {
  return {
    version: VERSION, role: "device", name, boot, kind: "browser", system: settings.system, offers: platform.offers,
    session: serving && !serving.ended ? serving.name : null, ...credentials,
  };
}

function welcome(fields) {
  name = fields.name;
  told = "";
  if (fields.token) {
    credentials = { token: fields.token };
    self.postMessage({ kind: "paired", token: fields.token });
  }
  connection.send(control("offers", platform.offers));
  if (!serving) lease = null;  // the hub says so anew if it is leased
  changed();
}

function message(received) {
  if (received.session) packet(received);
  else if (received.name === "lease") {
    [lease] = received.arguments;
    if (serving && !same(serving.name, lease.session)) release();
    changed();
  } else if (received.name === "release") {
    const [released] = received.arguments;
    if (lease && same(lease.session, released)) lease = null;
    if (serving && same(serving.name, released)) release();
    changed();
  }
}

function packet(received) {
  if (!serving || serving.ended || !same(serving.name, received.session)) {
    const resume = received.items.find(item => item[0] === "resume");
    if (!resume) return;  // of a session that is over
    if (resume[1] !== 1 || received.ack) {
      const text = "This page does not hold the session any more: it was loaded anew, or released it.";
      send(new Channel(received.session).bare([["lost", text]]));
      return;
    }
    release();
    serving = new Serving(received.session, new Session(platform, store), send, before);
    sessions += 1;
    changed();
  }
  serving.take(received);
}

function release() {
  if (!serving) return;
  launchesBefore += serving.launches;
  before = serving.end().catch(() => null);  // the next session starts from nothing all the same
  serving = null;
}

function send(data) {
  connection.send(data);
}

function tick() {
  if (connection.state === "connected") awaySince = null;
  else {
    awaySince ??= performance.now();
    if (serving && performance.now() - awaySince > AWAY_MILLISECONDS) release();
  }
  changed();
}

// Tells the hub and the page how it goes.
function changed() {
  const since = serving?.busySince ?? null;
  const long = since === null ? 0 : performance.now() - since;
  const note = long > LONG_MILLISECONDS ? `one request for ${Math.round(long / 1000)} s` : "";
  const status = {
    state: serving || lease ? "busy" : "idle", launches: launchesBefore + (serving?.launches ?? 0), received: connection?.received ?? 0,
    sent: connection?.sent ?? 0, stored: store?.used ?? 0, note,
  };
  const text = JSON.stringify(status);
  if (text !== told && connection?.state === "connected" && moved(status)) {
    connection.send(control("status", status));
    told = text;
  }
  self.postMessage({
    kind: "state", connection: connection?.state ?? "connecting", why: connection?.why ?? "", code: connection?.code ?? "", name,
    offer: platform?.offer ?? null, lease: lease && { target: lease.target, label: lease.label }, lost: platform?.lost ?? 0,
    budget: store?.budget ?? 0, sessions, ...status,
  });
}

// Whether this is worth telling: an idle device that only answers pings has no news.
function moved(status) {
  const last = told ? JSON.parse(told) : null;
  return !last || ["state", "launches", "stored", "note"].some(key => last[key] !== status[key]) || status.state === "busy";
}

function same(a, b) {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
