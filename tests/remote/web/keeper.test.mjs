// What keeps a page a device, over workers and a screen of which a test says what they do.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { Keeper } from "../../../tapml/web/keeper.js";

let workers;
let page;
let screen;

class FakeWorker extends EventTarget {
  told = [];
  constructor() {
    super();
    workers.push(this);
  }

  postMessage(message) {
    this.told.push(structuredClone(message));
  }

  says(data) {
    this.dispatchEvent(Object.assign(new Event("message"), { data }));
  }

  terminate() {
    return undefined;
  }
}

// Gives wake locks when `allowed`, once `held` has resolved.
class FakeScreen {
  allowed = true;
  held = null;
  on = 0;
  asked = 0;

  async request() {
    this.asked += 1;
    await this.held;
    if (!this.allowed) throw new Error("NotAllowedError");
    this.on += 1;
    return Object.assign(new EventTarget(), { release: async () => { this.on -= 1; } });
  }
}

const WORKS = { kind: "state", connection: "connected", name: "phone-2", offer: { state: "ready" } };

function started() {
  const keeper = new Keeper({ token: "t", pair: "", name: "phone" }, () => null, () => null);
  keeper.start();
  return keeper;
}

function rest() {
  return new Promise(resolve => setTimeout(resolve, 5));
}

beforeEach(() => {
  workers = [];
  page = new EventTarget();
  screen = new FakeScreen();
  globalThis.Worker = FakeWorker;
  globalThis.setInterval = () => null;
  globalThis.addEventListener = (...args) => page.addEventListener(...args);
  globalThis.document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  const locks = { request: async () => { throw new Error("SecurityError"); } };
  Object.defineProperty(globalThis, "navigator", { value: { wakeLock: screen, locks }, configurable: true });
});

test("a worker that is started again wishes for the name that the hub gave", () => {
  const keeper = started();
  workers[0].says({ ...WORKS, connection: "connecting", name: "phone" });
  workers[0].says(WORKS);
  keeper.stop();
  keeper.start();
  assert.deepEqual(workers.map(worker => worker.told[0].name), ["phone", "phone-2"]);
  keeper.rename("other");
  workers[1].says(WORKS);  // the one that is gone has no say
  keeper.stop();
  keeper.start();
  assert.deepEqual(workers.map(worker => worker.told[0].name), ["phone", "phone-2", "other", "other"]);
});

test("a screen that may stay on only for who touches the page is asked for again then", async () => {
  const keeper = started();
  screen.allowed = false;
  workers[0].says(WORKS);
  await rest();
  workers[0].says(WORKS);
  assert.deepEqual([keeper.screen, screen.asked], ["touch", 1]);
  screen.allowed = true;
  page.dispatchEvent(new Event("pointerup"));
  await rest();
  assert.deepEqual([keeper.screen, screen.on], ["on", 1]);
});

test("nobody is told to touch a page for nothing", async () => {
  const keeper = started();
  screen.allowed = false;
  workers[0].says(WORKS);
  await rest();
  page.dispatchEvent(new Event("keydown"));
  await rest();
  assert.deepEqual([keeper.screen, screen.asked], ["", 2]);
});

test("a screen that was asked for before the device was stopped is let go", async () => {
  const keeper = started();
  let letGo;
  screen.held = new Promise(resolve => { letGo = resolve; });
  workers[0].says(WORKS);
  keeper.stop();
  letGo();
  await rest();
  assert.deepEqual([keeper.screen, screen.on, screen.asked], ["", 0, 1]);
});

test("of two requests for the screen that cross, one lock is kept", async () => {
  const keeper = started();
  let letGo;
  screen.held = new Promise(resolve => { letGo = resolve; });
  workers[0].says(WORKS);
  keeper.stop();
  keeper.start();
  workers[1].says(WORKS);
  letGo();
  await rest();
  assert.deepEqual([keeper.screen, screen.on], ["on", 1]);
  keeper.stop();
  await rest();
  assert.equal(screen.on, 0);
});
