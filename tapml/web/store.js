// What a device remembers by content: weights and kernels, each under its SHA-256 digest, so that they are sent once. tapml/remote/agent/store.py is the
// same for an agent.
//
//     const store = await Store.open()                       what earlier pages of this hub left in the browser's cache
//     const shelf = await store.begin()                            a session starts; one at a time
//     shelf.listed, shelf.room                               digests that stay until its end, and the bytes that it may add
//     await shelf.keep(digest, total, offset, bytes)         in order; the last piece completes it, if the digest is right
//     await shelf.bytes(digest)                              throws Gone when the browser threw it away
//     await shelf.end()                                      what is older makes room for the next session
//
// Things lie in the Cache API under the hex of their digest, which is computed here, so they survive a reload and a closed tab. Where there
// is no such cache, or it is full, they are in memory. What is read back is checked against its digest. Nothing is allocated because a
// message says how large something will be.
//
// The cache is shared by all tabs of this hub, and the browser may empty it at any time. So each session begins with a look at what is there, and
// forgets nothing while another tab is in one: each holds a Web Lock during its session, which clearing up wants for itself alone.

import { Failure, mistake } from "./failure.js";

const CACHE = "tapml-store-1";
const LOCK = "tapml-store-1";
const MOST_BUDGET = 4 * 2 ** 30;
const MEMORY_BUDGET = 2 ** 28;

// Bytes that wait to be written to the cache before `keep` waits too, and of those that were used last, kept at hand.
const MOST_UNWRITTEN = 2 ** 27;
const MOST_AT_HAND = 2 ** 26;

// As many digests as the answer to `open` can list, and as many things as there can be during a session.
const LISTED = 8192;
const MOST_THINGS = 65536;

// What is free when a session begins, a quarter of the budget where that is less: kernels have no other way to the device.
const FREE = 2 ** 25;

// A cache that has not said by then what is in it is done without: the device is worth more than what it remembers.
const OPEN_MILLISECONDS = 10000;

// A thing that was promised is no longer there: the browser cleared its cache, which the next session sees when it begins.
export class Gone extends Error {}

export class Store {
  // Sizes by hex, the thing used longest ago first.
  things = new Map();
  used = 0;
  #caches;
  #cache = null;
  #inMemory = new Map();
  #inMemoryBytes = 0;
  #atHand = new Map();
  #atHandBytes = 0;
  #writing = new Map();
  #unwritten = 0;
  #shelf = null;
  // Lowered when the cache takes no more.
  #most = MOST_BUDGET;

  // `caches` is the browser's CacheStorage, or null.
  constructor(caches, budget) {
    this.#caches = caches;
    this.budget = budget;
  }

  static async open(milliseconds = OPEN_MILLISECONDS) {
    const store = new Store(globalThis.caches ?? null, MEMORY_BUDGET);
    await store.#look(milliseconds);
    return store;
  }

  // Makes `things` what is there now.
  async #look(milliseconds = OPEN_MILLISECONDS) {
    if (!this.#caches) return;
    let timer;
    const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error("the cache does not answer")), milliseconds); });
    try {
      await Promise.race([this.#list(), late]);
    } catch {
      // No Cache API here, or it is closed to this page.
      this.#caches = this.#cache = null;
      this.budget = MEMORY_BUDGET;
      this.#keepOnly(this.#inMemory);
    }
    clearTimeout(timer);
  }

  async #list() {
    const cache = await this.#caches.open(CACHE);  // the one of before may have been deleted
    const found = new Map();
    for (const request of await cache.keys()) {
      const [, hex, size] = /\/stored\/([0-9a-f]{64})\/(\d{1,15})$/.exec(request.url) ?? [];
      if (hex) found.set(hex, Number(size));
    }
    const { quota = 0, usage = 0 } = await navigator.storage.estimate();
    if (!this.#caches) return;  // it took too long
    this.#cache = cache;
    this.#keepOnly(found);
    for (const [hex, size] of found) if (!this.has(hex)) this.#note(hex, size);
    this.budget = Math.min(this.#most, Math.floor(0.6 * Math.max(0, quota - usage + this.used)));
  }

  #keepOnly(found) {
    for (const hex of this.things.keys()) if (!found.has(hex) && !this.#inMemory.has(hex)) this.#drop(hex);
  }

  // A session's view of the store. One that was not ended ends now.
  async begin() {
    await this.#shelf?.end();
    const release = this.#caches ? await lock({ mode: "shared", signal: AbortSignal.timeout(OPEN_MILLISECONDS) }) : null;
    await this.#look();
    this.#shelf = new Shelf(this, release ?? (() => null));
    return this.#shelf;
  }

  has(hex) {
    return this.things.has(hex);
  }

  #note(hex, size) {
    this.things.set(hex, size);
    this.used += size;
  }

  // Of something new. Waits while the cache is far behind.
  async add(hex, bytes) {
    this.#note(hex, bytes.length);
    if (!this.#cache) {
      this.#keepInMemory(hex, bytes);
      return;
    }
    this.#hold(hex, bytes);
    this.#unwritten += bytes.length;
    const written = this.#cache.put(address(hex, bytes.length), new Response(bytes))
      .catch(() => this.#full(hex, bytes))
      .finally(() => { this.#writing.delete(hex); this.#unwritten -= bytes.length; });
    this.#writing.set(hex, { bytes, written });
    while (this.#unwritten > MOST_UNWRITTEN) await this.#writing.values().next().value.written;
  }

  #keepInMemory(hex, bytes) {
    this.#inMemory.set(hex, bytes);
    this.#inMemoryBytes += bytes.length;
  }

  // The cache takes no more: this page keeps it, within reason, and asks the next client for less.
  #full(hex, bytes) {
    this.#most = Math.max(MEMORY_BUDGET, Math.min(this.#most, this.used - bytes.length));
    if (this.#inMemoryBytes + bytes.length <= MEMORY_BUDGET) this.#keepInMemory(hex, bytes);
  }

  async get(hex) {
    const near = this.#inMemory.get(hex) ?? this.#writing.get(hex)?.bytes ?? this.#atHand.get(hex);
    if (near) return near;
    const found = await this.#cached(hex).catch(() => null);
    const bytes = found && new Uint8Array(found);
    if (!bytes || await sha256(bytes) !== hex) {
      await this.#forget(hex);
      throw new Gone(`the browser no longer has ${hex.slice(0, 16)}`);
    }
    this.#hold(hex, bytes);
    return bytes;
  }

  async #cached(hex) {
    return (await this.#cache?.match(address(hex, this.things.get(hex))))?.arrayBuffer();
  }

  #hold(hex, bytes) {
    this.#atHandBytes += bytes.length - (this.#atHand.get(hex)?.length ?? 0);
    this.#atHand.delete(hex);
    this.#atHand.set(hex, bytes);
    for (const [old, { length }] of this.#atHand) {
      if (this.#atHandBytes <= MOST_AT_HAND) break;
      this.#atHand.delete(old);
      this.#atHandBytes -= length;
    }
  }

  async #forget(hex) {
    const size = this.things.get(hex);
    if (size === undefined) return;
    this.#drop(hex);
    await this.#cache?.delete(address(hex, size)).catch(() => null);  // what is still there is found again when the next session begins
  }

  #drop(hex) {
    this.used -= this.things.get(hex);
    this.things.delete(hex);
    this.#inMemoryBytes -= this.#inMemory.get(hex)?.length ?? 0;
    this.#inMemory.delete(hex);
    this.#atHandBytes -= this.#atHand.get(hex)?.length ?? 0;
    this.#atHand.delete(hex);
  }

  // A session is over that used these, in this order: what came is written, and what is older forgotten, unless another tab may need it. (After a
  // reload the order is that in which things came.)
  async end(used, release) {
    for (const { written } of [...this.#writing.values()]) await written;
    await release();
    for (const hex of used) {
      const size = this.things.get(hex);
      if (size === undefined) continue;
      this.things.delete(hex);
      this.things.set(hex, size);
    }
    if (!this.#crowded(this.used, this.things.size)) return;
    const alone = this.#cache ? await lock({ mode: "exclusive", ifAvailable: true }) : () => null;
    if (!alone) return;
    try {
      await this.#look();
      await this.#trim(used);
    } finally {
      alone();
    }
  }

  #crowded(bytes, count) {
    return bytes > this.budget / 2 || count > LISTED / 2;
  }

  async #trim(used) {
    const going = [];
    const most = this.budget - Math.min(FREE, this.budget / 4);
    let left = this.used;
    for (const [hex, size] of this.things) {
      const count = this.things.size - going.length;
      if (!this.#crowded(left, count)) break;
      if (!used.has(hex) || left > most || count > LISTED) {
        going.push(hex);
        left -= size;
      }
    }
    for (const hex of going) await this.#forget(hex);
  }
}

class Shelf {
  #store;
  #used = new Set();
  #coming = null;
  #ended = null;
  #release;

  constructor(store, release) {
    this.#store = store;
    this.#release = release;
    const listed = [...store.things.keys()].slice(-LISTED);
    this.listed = listed.map(bytesOf);
    this.room = Math.max(0, store.budget - store.used);
  }

  // The next piece; what is there already is not kept twice. A promise when it is the last one.
  keep(digest, total, offset, bytes) {
    this.#check();
    const hex = hexOf(digest);
    if (this.#store.has(hex)) {
      this.#used.add(hex);
      return undefined;
    }
    if (offset === 0) this.#begin(hex, total);
    const coming = this.#coming;
    if (!coming || coming.hex !== hex || coming.total !== total || coming.nbytes !== offset || offset + bytes.length > total) {
      this.#coming = null;
      throw mistake(`a piece at ${offset} of ${hex.slice(0, 16)} does not follow what came before`);
    }
    // A view of a much larger message would hold all of that.
    coming.pieces.push(2 * bytes.length < bytes.buffer.byteLength ? bytes.slice() : bytes);
    coming.nbytes += bytes.length;
    if (coming.nbytes < total) return undefined;
    this.#coming = null;
    return this.#complete(coming);
  }

  #begin(hex, total) {
    this.#coming = null;
    if (total > this.room) throw new Failure("memory", `The store has room for ${this.room} more bytes, not for ${total}.`);
    if (this.#store.things.size >= MOST_THINGS) {
      throw new Failure("memory", `The store holds ${MOST_THINGS} things and accepts no more in this session.`);
    }
    this.#coming = { hex, total, nbytes: 0, pieces: [] };
  }

  async #complete({ hex, total, pieces }) {
    const bytes = joined(pieces, total);
    if (await sha256(bytes) !== hex) throw mistake(`what came for ${hex.slice(0, 16)} has another digest`);
    this.room -= total;
    this.#used.add(hex);
    await this.#store.add(hex, bytes);
  }

  async bytes(digest) {
    this.#check();
    const hex = hexOf(digest);
    if (!this.#store.has(hex)) throw mistake(`nothing is stored under ${hex.slice(0, 16)}`);
    this.#used.add(hex);
    return this.#store.get(hex);
  }

  // May be called twice.
  end() {
    this.#coming = null;
    this.#ended ??= this.#store.end(this.#used, this.#release);
    return this.#ended;
  }

  #check() {
    if (this.#ended) throw mistake("the session has ended");
  }
}

// What lets the lock go again, which takes a moment. Null when it was not to be had, which `ifAvailable` and `signal` decide; without Web Locks
// nothing is locked.
async function lock(options) {
  const { locks } = globalThis.navigator ?? {};
  if (!locks) return () => null;
  return new Promise(resolve => {
    const hold = () => new Promise(letGo => {
      resolve(() => {
        letGo();
        return over;
      });
    });
    const over = locks.request(LOCK, options, held => (held ? hold() : resolve(null))).catch(() => resolve(null));
  });
}

export function hexOf(bytes) {
  return Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
}

function bytesOf(hex) {
  return Uint8Array.from(hex.match(/../g), pair => parseInt(pair, 16));
}

async function sha256(bytes) {
  return hexOf(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
}

// The hub never sees this address: it is a name within the cache.
function address(hex, size) {
  return `/stored/${hex}/${size}`;
}

function joined(pieces, total) {
  if (pieces.length === 1) return pieces[0];
  const whole = new Uint8Array(total);
  let at = 0;
  while (pieces.length) {
    const piece = pieces.shift();
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
