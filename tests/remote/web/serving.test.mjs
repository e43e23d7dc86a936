// One session as the page serves it, over a GPU that a test holds still: order of answers, acknowledgements, the window, cancelling, resuming.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Channel } from "../../../tapml/web/channel.js";
import { Serving } from "../../../tapml/web/serving.js";
import { Session } from "../../../tapml/web/session.js";
import { Gone, Store } from "../../../tapml/web/store.js";
import { WINDOW, decode } from "../../../tapml/web/wire.js";
import { FakeGpu } from "./fake_gpu.mjs";

const NAME = new Uint8Array(16).fill(7);
const OPEN = ["open", 1, { target: "webgpu", device: null, deadline: null }];

// A client's end, joined to a Serving.
class Client {
  packets = [];
  items = [];
  // With `silent` the client acknowledges nothing.
  constructor({ silent = false } = {}) {
    this.channel = new Channel(NAME);
    this.gpu = new FakeGpu();
    this.session = new Session({ open: () => this.gpu }, new Store(null, 2 ** 24));
    this.serving = new Serving(NAME, this.session, data => {
      const packet = decode(data.slice());
      this.packets.push(packet);
      const taken = this.channel.take(packet);
      this.items.push(...taken);
      if (silent || !packet.seq) return;
      this.channel.done(packet);
      queueMicrotask(() => this.serving.take(decode(this.channel.bare())));
    });
  }

  send(...items) {
    this.serving.take(decode(this.channel.pack(items)));
  }

  bare(...items) {
    this.serving.take(decode(this.channel.bare(items)));
  }

  async until(holds) {
    for (let i = 0; i < 500 && !holds(); ++i) await new Promise(resolve => setTimeout(resolve, 10));
    assert.ok(holds(), `it holds still after the answers ${this.answered}`);
  }

  get answered() {
    return this.items.filter(([name]) => name === "ok" || name === "error").map(([, number]) => number);
  }
}

test("a step is one packet there and one back, which acknowledges it", async () => {
  const client = new Client();
  client.send(OPEN, ["allocate", 1, 8], ["synchronize", 2]);
  await client.until(() => client.answered.length === 2);
  const before = client.packets.length;
  client.send(["write", 1, 0, new Uint8Array([5])], ["read", 3, 1, 0, 4]);
  await client.until(() => client.answered.length === 3);
  assert.equal(client.packets.length, before + 1);
  assert.equal(client.packets.at(-1).ack, 2);
  assert.deepEqual(client.items.at(-1), ["ok", 3, new Uint8Array([5, 0, 0, 0])]);
  assert.equal(client.channel.inFlight, 0);
});

test("a long row of packets gives signs of life", async () => {
  const client = new Client();
  client.send(OPEN, ["allocate", 1, 8]);
  await client.until(() => client.answered.length === 1);
  const row = async number => {
    const before = client.packets.length;
    for (let i = 0; i < 5; ++i) client.send(["write", 1, 0, new Uint8Array([i])]);
    client.send(["synchronize", number]);
    await client.until(() => client.answered.at(-1) === number);
    return client.packets.length - before;
  };
  const quick = await row(2);
  const now = performance.now.bind(performance);
  let spent = 0;
  performance.now = () => now() + (spent += 2000);
  const slow = await row(3).finally(() => { delete performance.now; });
  assert.deepEqual([quick, slow], [1, 6]);
});

test("what comes after a read does not wait for it, and its answer keeps its place", async () => {
  const client = new Client();
  client.send(OPEN, ["allocate", 1, 4], ["write", 1, 0, new Uint8Array([1])]);
  await client.until(() => client.answered.length === 1);
  let letGo;
  client.gpu.held = new Promise(resolve => { letGo = resolve; });
  client.send(["read", 2, 1, 0, 1]);
  client.send(["write", 1, 0, new Uint8Array([2])]);
  client.send(["read", 3, 1, 0, 1], ["read", 4, 7, 0, 1]);
  await client.until(() => client.gpu.live.values().next().value.memory[0] === 2);
  client.bare(["resume", client.channel.first]);
  await client.until(() => client.items.at(-1)[0] === "resumed");
  assert.deepEqual(client.answered, [1]);
  assert.equal(client.channel.first, 2);  // nothing of it is acknowledged
  letGo();
  await client.until(() => client.answered.length === 4);
  assert.deepEqual(client.answered, [1, 2, 3, 4]);
  assert.deepEqual(client.items.filter(([kind]) => kind !== "resumed").slice(1).map(([kind, , value]) => (kind === "ok" ? value[0] : value)), [1, 2, "value"]);
});

test("requests that were cancelled are not begun, and one that does not end takes the device with it", async () => {
  const client = new Client();
  client.send(OPEN, ["allocate", 1, 4]);
  await client.until(() => client.answered.length === 1);
  client.gpu.held = new Promise(() => null);
  client.send(["synchronize", 2]);
  await client.until(() => client.serving.busySince !== null);
  client.send(["write", 1, 0, new Uint8Array([9])], ["allocate", 2, 4], ["read", 3, 1, 0, 4]);
  client.send(["free", 1], ["synchronize", 4]);
  client.bare(["cancel", 3]);
  await client.until(() => client.answered.length === 4);
  assert.match(client.gpu.ended, /was cancelled and did not end within 2 s/);
  assert.deepEqual(client.items.map(([, , kind]) => kind).slice(1), ["lost", "cancelled", "lost"]);
  assert.match(client.items[1][4], /was cancelled/);
});

test("a client that acknowledges nothing is sent a window, and no more", async () => {
  const client = new Client({ silent: true });
  client.send(OPEN, ["allocate", 1, 2 ** 20], ["synchronize", 2]);
  for (let number = 3; number < 23; ++number) client.send(["read", number, 1, 0, 2 ** 20]);
  await client.until(() => client.answered.length === 10);
  await new Promise(resolve => setTimeout(resolve, 50));
  const sent = client.packets.filter(packet => packet.seq).reduce((sum, packet) => sum + packet.nbytes, 0);
  assert.ok(sent >= WINDOW && sent < WINDOW + 1.1 * 2 ** 20);
});

test("what was not acknowledged comes again after resume, and is a double", async () => {
  const client = new Client({ silent: true });
  client.send(OPEN, ["allocate", 1, 4], ["read", 2, 1, 0, 4]);
  await client.until(() => client.answered.length === 2);
  const before = client.packets.length;
  client.bare(["resume", 1]);
  await client.until(() => client.packets.length > before + 1);
  assert.deepEqual(client.packets[before].items, [["resumed"]]);
  assert.deepEqual(client.packets.slice(before + 1).map(packet => packet.seq), [1]);
  assert.deepEqual(client.answered, [1, 2]);
});

test("a packet that is missing is asked for", async () => {
  const client = new Client();
  client.channel.pack([OPEN]);
  client.send(["synchronize", 2]);
  assert.deepEqual(client.items, [["resend"]]);
});

test("a store that lost what it promised ends the session, and says so", async () => {
  const client = new Client();
  client.send(OPEN, ["allocate", 1, 4], ["synchronize", 2]);
  await client.until(() => client.answered.length === 2);
  client.session.carryOut = () => Promise.reject(new Gone("the browser no longer has it"));
  client.send(["put", 1, 0, new Uint8Array(32)]);
  await client.until(() => client.items.at(-1)[0] === "lost");
  assert.ok(client.serving.ended);
  await client.serving.end();
  assert.equal(client.gpu.live.size, 0);
});

test("the end of a session waits for the device to rest, and ends one that does not", async () => {
  const client = new Client();
  client.send(OPEN, ["allocate", 1, 4]);
  await client.until(() => client.answered.length === 1);
  client.gpu.held = new Promise(() => null);
  client.send(["read", 2, 1, 0, 4]);
  await client.serving.end();
  assert.match(client.gpu.ended, /ended while a request was under way/);
  assert.equal(client.gpu.live.size, 0);
});

test("a browser's cache that does not answer is done without", async () => {
  globalThis.caches = { open: async () => ({ keys: () => new Promise(() => null) }) };
  const store = await Store.open(20);
  delete globalThis.caches;
  assert.ok(store.budget > 0);
  await store.add("ab".repeat(32), new Uint8Array(3));
  assert.ok(store.has("ab".repeat(32)));
});

test("a cancelled read that only waits for the client to take its answer does not take the device with it", async () => {
  const client = new Client({ silent: true });
  client.send(OPEN, ["allocate", 1, 2 ** 20], ["synchronize", 2]);
  for (let number = 3; number < 43; ++number) client.send(["read", number, 1, 0, 2 ** 20]);
  await client.until(() => client.answered.length === 10);
  await new Promise(resolve => setTimeout(resolve, 50));
  assert.equal(client.serving.busySince, null);
  client.bare(["cancel", 42]);
  await new Promise(resolve => setTimeout(resolve, 2200));
  assert.equal(client.gpu.ended, "");
  for (let taken = 0; taken < client.packets.length;) {
    const packet = client.packets[taken++];
    if (!packet.seq) continue;
    client.channel.done(packet);
    client.bare();
    await new Promise(resolve => setTimeout(resolve, 10));
  }
  await client.until(() => client.answered.length === 42);
  assert.deepEqual(client.answered, client.answered.map((_, i) => i + 1));
  const kinds = client.items.map(([kind, , what]) => (kind === "error" ? what : kind));
  // Besides the window, 16 MiB were read already.
  assert.deepEqual(kinds, [...Array(26).fill("ok"), ...Array(16).fill("cancelled")]);
});
