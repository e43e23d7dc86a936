// What a device remembers, over a cache that other tabs share and that the browser may empty.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { beforeEach, test } from "node:test";

import { Gone, Store } from "../../../tapml/web/store.js";

// CacheStorage with one cache. Writes wait for `held`, and fail while `full`.
class FakeCaches {
  entries = new Map();
  held = null;
  full = false;

  async open() {
    const entries = this.entries;
    return {
      keys: async () => [...entries.keys()].map(path => ({ url: `https://hub${path}` })),
      match: async path => entries.get(path)?.clone(),
      delete: async path => entries.delete(path),
      put: async (path, response) => {
        await this.held;
        if (this.full) throw new Error("QuotaExceededError");
        entries.set(path, response);
      },
    };
  }

  // As when the site's data is cleared: what was opened before is a cache that nobody else sees.
  clear() {
    this.entries = new Map();
  }
}

// Web Locks of one name.
class FakeLocks {
  shared = 0;
  exclusive = false;

  async request(_, { mode }, hold) {
    const free = mode === "shared" ? !this.exclusive : !this.exclusive && !this.shared;
    if (!free) return hold(null);
    if (mode === "shared") this.shared += 1;
    else this.exclusive = true;
    try {
      return await hold({});
    } finally {
      if (mode === "shared") this.shared -= 1;
      else this.exclusive = false;
    }
  }
}

const MIB = 2 ** 20;
let quota;
let usage;
let locks;

beforeEach(() => {
  quota = 100 * MIB;
  usage = () => 0;
  locks = new FakeLocks();
  globalThis.caches = new FakeCaches();
  const storage = { estimate: async () => ({ quota, usage: usage() }) };
  Object.defineProperty(globalThis, "navigator", { value: { locks, storage }, configurable: true });
});

function thing(seed, size = 1000) {
  const bytes = new Uint8Array(size).fill(seed);
  return { bytes, digest: new Uint8Array(createHash("sha256").update(bytes).digest()) };
}

async function keep(shelf, ...things) {
  for (const { bytes, digest } of things) await shelf.keep(digest, bytes.length, 0, bytes);
}

function lists(shelf, { digest }) {
  return shelf.listed.some(one => one.join() === digest.join());
}

const [A, B, C] = [thing(1), thing(2), thing(3)];

async function another(store, ...things) {
  const shelf = await store.begin();
  await keep(shelf, ...things);
  await shelf.end();
}

test("all that the browser threw away is known when the next session begins", async () => {
  await another(await Store.open(), A, B, C);
  const store = await Store.open();
  const first = await store.begin();
  assert.deepEqual([A, B, C].map(one => lists(first, one)), [true, true, true]);
  for (const path of [...caches.entries.keys()].slice(0, 2)) caches.entries.delete(path);
  await assert.rejects(first.bytes(A.digest), Gone);
  await first.end();
  const second = await store.begin();
  assert.deepEqual([A, B, C].map(one => lists(second, one)), [false, false, true]);
  assert.equal(store.used, 1000);
  await keep(second, A);
  assert.deepEqual(await second.bytes(A.digest), A.bytes);
  await second.end();
});

test("after all was cleared things are kept again", async () => {
  const store = await Store.open();
  await another(store, A, B);
  caches.clear();
  const shelf = await store.begin();
  assert.deepEqual(shelf.listed, []);
  await keep(shelf, A);
  await shelf.end();
  assert.equal(caches.entries.size, 1);
  assert.ok(lists(await (await Store.open()).begin(), A));
});

test("what another tab keeps need not be sent to this one", async () => {
  const [one, other] = [await Store.open(), await Store.open()];
  await another(other, A);
  const shelf = await one.begin();
  assert.ok(lists(shelf, A));
  assert.deepEqual(await shelf.bytes(A.digest), A.bytes);
  await shelf.end();
});

test("a tab forgets nothing while another one is in a session that may need it", async () => {
  quota = 4000;
  await another(await Store.open(), A);
  const [one, other] = [await Store.open(), await Store.open()];
  const shelf = await one.begin();
  await another(other, B);
  assert.deepEqual(await shelf.bytes(A.digest), A.bytes);
  await shelf.end();
  await another(other, C);
  assert.ok(caches.entries.size < 3);  // nobody was in the way
});

test("a session finds some room though the one before used all there is", async () => {
  const things = [...Array(20)].map((_, seed) => thing(seed));
  quota = 20000;  // of which 12 of the things may fill their part
  usage = () => 1000 * caches.entries.size;
  for (let i = 0; i < 4; ++i) {
    const store = await Store.open();
    const shelf = await store.begin();
    assert.ok(shelf.room >= 3000, `${shelf.room} bytes in session ${i}`);
    for (const one of things) if (shelf.room >= 1000) await keep(shelf, one);
    await shelf.end();
  }
});

test("a session is over when all that it brought is written", async () => {
  let letGo;
  caches.held = new Promise(resolve => { letGo = resolve; });
  const shelf = await (await Store.open()).begin();
  await keep(shelf, A, B);
  let over = false;
  const end = shelf.end().then(() => { over = true; });
  await new Promise(resolve => setTimeout(resolve, 20));
  assert.equal(over, false);
  letGo();
  await end;
  assert.equal(caches.entries.size, 2);
});

test("of what does not fit into the cache no more than 256 MiB stay in memory, and the next client is asked for less", async () => {
  quota = 2 ** 31;
  caches.full = true;
  const store = await Store.open();
  const first = await store.begin();
  assert.ok(first.room > 2 ** 30);
  const things = [1, 2, 3, 4, 5].map(seed => thing(seed, 90 * MIB));
  await keep(first, ...things);
  await first.end();
  const second = await store.begin();
  assert.equal(second.listed.length, 2);
  assert.equal(store.used, 180 * MIB);
  assert.ok(second.room <= 400 * MIB);
  await second.end();
});
