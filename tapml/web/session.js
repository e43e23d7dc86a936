// One session on this device: its requests carried out over a Gpu, without any network. tapml/remote/agent/session.py is the same for an agent, and
// docs/wire.md has the requests and their rules.
//
//     const session = new Session(platform, store)
//     await session.carryOut(item)           ["ok", …], ["error", …] or null; in order, the next one after this one is done
//     const begun = await session.read(items)          reads that stand side by side: begun.answers is a promise, and need not be
//                                                      waited for before what comes next is carried out
//     session.drop(item)                     the same for one that was cancelled: what depends on it fails, and nothing runs
//     await session.end()                    frees everything; the store keeps what it has
//
// Buffers and kernels are made without waiting: whether there was room, and what the driver says of a kernel, is asked for when the next
// launch, read or synchronize comes (`#settle`). So the kernels of a model are compiled side by side. None of these methods throws, but for Gone.

import { after } from "./deadline.js";
import { Failure, mistake } from "./failure.js";
import { Gone } from "./store.js";

export const ANSWERED = new Set(["open", "read", "synchronize", "close"]);

const MOST_HANDLES = 2 ** 20;
const MOST_BINDINGS = 2 ** 22;
const MOST_KERNEL_BYTES = 2 ** 24;
const END_SECONDS = 2;

const LANGUAGES = new Set(["opencl-c", "wgsl", "c", "cuda", "hip", "msl", "null"]);
const MODES = new Set(["read", "read_write", "write"]);
const CANCELLED = new Failure("cancelled", "The request was cancelled.");

export class Session {
  launches = 0;
  endedBecause = "";
  #platform;
  #store;
  #gpu = null;
  #shelf = null;
  #deadline = null;
  #buffers = new Map();
  #kernels = new Map();
  #batches = new Map();
  #bindings = 0;
  #pending = [];
  #notKept = new Map();
  #kept = null;
  #lost = null;
  #ended = null;

  // `platform.open(device)` gives the Gpu.
  constructor(platform, store) {
    this.#platform = platform;
    this.#store = store;
  }

  async carryOut(item) {
    const [name, ...args] = item;
    try {
      if (this.#lost && name !== "close") throw this.#lost;
      const value = this.#requests[name](...args);
      const done = value instanceof Promise ? await value : value;
      return ANSWERED.has(name) ? ["ok", args[0], done ?? null] : null;
    } catch (error) {
      const failure = this.#failure(error);
      if (ANSWERED.has(name)) return answer(args[0], failure);
      // The first error is told, and what is still being made may have failed before this.
      if (this.#pending.length) this.#pending.push({ table: null, outcome: Promise.resolve({ error: failure }) });
      else this.#kept ??= failure;
      return null;
    }
  }

  async read(items) {
    try {
      if (this.#lost) throw this.#lost;
      await this.#settle();
      await this.#tellKept();
    } catch (error) {
      const failure = this.#failure(error);
      if (failure.kind === "lost" || items.length === 1) return { answers: Promise.resolve(items.map(item => answer(item[1], failure))) };
      const others = await this.read(items.slice(1));
      return { answers: others.answers.then(answers => [answer(items[0][1], failure), ...answers]) };
    }
    const answers = new Map();
    const parts = [];
    for (const [, number, handle, offset, nbytes] of items) {
      try {
        const buffer = held(this.#buffers, handle, "buffer");
        if (offset + nbytes > buffer.size) throw mistake(`bytes ${offset} to ${offset + nbytes} are outside of a buffer of ${buffer.size} bytes`);
        parts.push({ number, buffer, offset, nbytes });
      } catch (error) {
        answers.set(number, answer(number, this.#failure(error)));
      }
    }
    const reading = parts.length ? this.#opened().readMany(parts) : Promise.resolve([]);
    const all = this.#within(reading).then(results => parts.forEach(({ number }, i) => answers.set(number, ["ok", number, results[i]])), error => {
      const failure = this.#failure(error);
      for (const { number } of parts) answers.set(number, answer(number, failure));
    });
    return { answers: all.then(() => items.map(item => answers.get(item[1]))) };
  }

  // A handle that a cancelled request would have made is left as failed. What only gives something back is carried out all the same.
  drop(item) {
    const [name, first] = item;
    if (ANSWERED.has(name)) return answer(first, CANCELLED);
    if (name === "free" || name === "unload" || name === "forget") return this.carryOut(item);
    const tables = { allocate: this.#buffers, load: this.#kernels, define: this.#batches };
    const table = tables[name];
    if (table && !table.has(first) && table.size < MOST_HANDLES && !this.#ended) table.set(first, CANCELLED);
    if (name === "keep") this.#remember(first, CANCELLED);
    return null;
  }

  // May be called twice. A device that does not come to rest soon is ended.
  end() {
    this.#ended ??= this.#free();
    return this.#ended;
  }

  // What was recorded for the GPU starts now.
  flush() {
    this.#gpu?.flush();
  }

  // The device is given up, for this reason; what is under way fails with it.
  endDevice(reason) {
    this.#gpu?.end(reason);
  }

  // Nothing starts after `close`; not even what was queued behind it.
  async #free() {
    const gpu = this.#gpu;
    this.#gpu = null;
    if (gpu) {
      const rested = after(1000 * END_SECONDS, () => gpu.end("The session was ended while a request was under way."));
      await gpu.synchronize().catch(() => null);
      rested();
      for (const { table, outcome } of this.#pending) if (table === this.#kernels) outcome.then(({ value }) => value && gpu.unload(value));
      for (const buffer of this.#buffers.values()) if (!(buffer instanceof Failure)) gpu.free(buffer);
      for (const kernel of this.#kernels.values()) if (kernel.pipeline) gpu.unload(kernel);
    }
    for (const table of [this.#buffers, this.#kernels, this.#batches]) table.clear();
    this.#pending = [];
    await this.#shelf?.end();
  }

  #requests = {
    open: async (number, { target, device, deadline }) => {
      if (this.#gpu || this.#ended) throw mistake(this.#ended ? "the session was closed" : "the session is open already");
      if (deadline !== null && !(deadline > 0)) throw mistake(`a deadline of ${deadline} s leaves no time for anything`);
      if (target !== "webgpu") throw new Failure("target", `This device is a browser: it offers webgpu, not ${target}.`);
      const gpu = await this.#platform.open(device);
      const shelf = await this.#store.begin();
      if (this.#ended) {
        await shelf.end();
        throw mistake("the session was closed");
      }
      this.#gpu = gpu;
      this.#shelf = shelf;
      this.#deadline = deadline;
      return { info: this.#gpu.info, room: this.#shelf.room, stored: this.#shelf.listed };
    },

    allocate: (handle, nbytes) => {
      const gpu = this.#opened();
      checkNew(this.#buffers, handle, "buffer");
      this.#make(this.#buffers, handle, () => {
        const buffer = gpu.allocate(nbytes);
        this.#await(this.#buffers, handle, buffer, buffer.ready.then(() => buffer));
      });
    },

    free: handle => {
      const buffer = pop(this.#buffers, handle, "buffer");
      if (!(buffer instanceof Failure)) this.#opened().free(buffer);
    },

    write: (handle, offset, bytes) => this.#write(held(this.#buffers, handle, "buffer"), offset, bytes),

    keep: (digest, total, offset, bytes) => {
      this.#opened();
      const failed = error => {
        this.#remember(digest, this.#failure(error));
        throw error;
      };
      try {
        return this.#shelf.keep(digest, total, offset, bytes)?.then(() => this.#notKept.delete(digest.join()), failed);
      } catch (error) {
        return failed(error);
      }
    },

    put: async (handle, offset, digest) => {
      const buffer = held(this.#buffers, handle, "buffer");
      await this.#write(buffer, offset, await this.#bytes(digest));
    },

    load: async (handle, digest) => {
      const gpu = this.#opened();
      checkNew(this.#kernels, handle, "kernel");
      await this.#make(this.#kernels, handle, async () => {
        const kernel = parseKernel(await this.#bytes(digest));
        const made = gpu.load(kernel, digest.join());
        this.#await(this.#kernels, handle, { coming: made }, made);
      });
    },

    unload: async handle => {
      await this.#settle();
      const kernel = pop(this.#kernels, handle, "kernel");
      if (!(kernel instanceof Failure)) this.#opened().unload(kernel);
    },

    launch: launches => this.#whenSettled(() => {
      const resolved = this.#resolved(launches);
      if (this.#kept) return;
      const gpu = this.#opened();
      gpu.run(gpu.batch(resolved));
      this.launches += launches.length;
    }),

    define: (handle, launches) => this.#whenSettled(() => {
      const gpu = this.#opened();
      checkNew(this.#batches, handle, "batch");
      this.#make(this.#batches, handle, () => {
        const bindings = launches.reduce((sum, [, buffers]) => sum + 1 + buffers.length, 0);
        if (this.#bindings + bindings > MOST_BINDINGS) {
          throw new Failure("memory", `The session's batches have more than ${MOST_BINDINGS} launches and buffers.`);
        }
        this.#batches.set(handle, { plan: gpu.batch(this.#resolved(launches), true), bindings });
        this.#bindings += bindings;
      });
    }),

    run: handle => this.#whenSettled(() => {
      const { plan } = held(this.#batches, handle, "batch");
      if (this.#kept) return;
      this.#opened().run(plan);
      this.launches += plan.launches.length;
    }),

    forget: handle => {
      const batch = pop(this.#batches, handle, "batch");
      if (batch instanceof Failure) return;
      this.#bindings -= batch.bindings;
      this.#opened().forget(batch.plan);
    },

    synchronize: async () => {
      await this.#settle();
      await this.#tellKept();
      await this.#within(this.#opened().synchronize());
    },

    close: async () => {
      await this.#settle();
      await this.end();
    },
  };

  #opened() {
    if (!this.#gpu) throw mistake(this.#ended ? "the session was closed" : "the session has no device: open comes first");
    return this.#gpu;
  }

  #write(buffer, offset, bytes) {
    const waiting = this.#opened().write(buffer, offset, bytes);
    return waiting && this.#within(waiting);
  }

  async #bytes(digest) {
    this.#opened();
    try {
      return await this.#shelf.bytes(digest);
    } catch (error) {
      throw this.#notKept.get(digest.join()) ?? error;
    }
  }

  #remember(digest, failure) {
    const key = digest.join();
    if (this.#notKept.size < MOST_HANDLES && !this.#notKept.has(key)) this.#notKept.set(key, failure);
  }

  // Does what makes a handle; if that throws, the handle is left behind as failed.
  #make(table, handle, make) {
    const failed = error => {
      table.set(handle, this.#failure(error));
      throw error;
    };
    try {
      return make()?.catch(failed);
    } catch (error) {
      return failed(error);
    }
  }

  // Puts `now` in the table until it is known what came of it.
  #await(table, handle, now, coming) {
    table.set(handle, now);
    const outcome = coming.then(value => ({ value }), error => ({ error }));
    this.#pending.push({ table, handle, now, outcome });
  }

  #whenSettled(work) {
    return this.#pending.length ? this.#settle().then(work) : work();
  }

  // Waits for what was made without waiting, one after the other, each within the deadline.
  async #settle() {
    while (this.#pending.length) {
      const { table, handle, now, outcome } = this.#pending[0];
      const { value, error } = await this.#within(outcome);
      this.#pending.shift();
      if (error) this.#kept ??= this.#failure(error);
      // It may have been given back already.
      if (table && table.get(handle) === now) table.set(handle, error ? this.#failure(error) : value);
    }
  }

  // Throws what a request that nobody waited for left behind.
  async #tellKept() {
    const kept = this.#kept;
    if (!kept) return;
    this.#kept = null;
    // What followed from it on the device is told with it. That the device was lost is more than that.
    if (this.#gpu) await this.#within(this.#gpu.synchronize()).catch(error => { if (error.kind === "lost") throw error; });
    throw kept;
  }

  #resolved(launches) {
    return launches.map(([kernel, buffers]) => ({
      kernel: held(this.#kernels, kernel, "kernel"), buffers: buffers.map(buffer => held(this.#buffers, buffer, "buffer")),
    }));
  }

  // The device is ended when the deadline passes first.
  #within(promise) {
    if (this.#deadline === null) return promise;
    const gpu = this.#gpu;
    const text = `The webgpu device did not answer within the deadline of ${this.#deadline} s and was killed.`;
    return promise.finally(after(1000 * this.#deadline, () => gpu?.end(text)));
  }

  // What to answer for an error; a lost device is remembered.
  #failure(error) {
    if (error instanceof Gone) throw error;
    const failure = Failure.of(error);
    if (failure.kind === "lost") this.#lost ??= new Failure("lost", this.endedBecause || failure.message);
    return failure.kind === "lost" ? this.#lost : failure;
  }
}

function answer(number, failure) {
  return ["error", number, failure.kind, failure.stage, failure.message];
}

function checkNew(table, handle, kind) {
  if (table.has(handle)) throw mistake(`${kind} ${handle} exists already`);
  if (table.size >= MOST_HANDLES) throw new Failure("memory", `The session has ${MOST_HANDLES} ${kind}s, and may not have more.`);
}

// What a handle stands for. Throws the error with which it failed, if it did.
function held(table, handle, kind) {
  const found = table.get(handle);
  if (found === undefined) throw mistake(`there is no ${kind} ${handle}`);
  if (found instanceof Failure) throw found;
  return found;
}

function pop(table, handle, kind) {
  const found = table.get(handle);
  if (found === undefined) throw mistake(`there is no ${kind} ${handle}`);
  table.delete(handle);
  return found;
}

// The text of a kernel, every field checked.
export function parseKernel(bytes) {
  if (bytes.length > MOST_KERNEL_BYTES) throw mistake(`a kernel of more than ${MOST_KERNEL_BYTES} bytes`);
  let fields;
  try {
    fields = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw mistake(`the text of a kernel is not JSON: ${error.message}`);
  }
  const checks = {
    language: value => LANGUAGES.has(value),
    entry: value => typeof value === "string" && /^[A-Za-z_][A-Za-z0-9_]{0,255}$/.test(value),
    source: value => typeof value === "string" && !value.includes("\0"),
    access: value => Array.isArray(value) && value.every(mode => MODES.has(mode)),
    grid: value => words(value, 1, 2 ** 32 - 1) && value.length === 3,
    block: value => words(value, 1, 2 ** 32 - 1) && value.length === 3,
    uniform: value => words(value, -(2 ** 31), 2 ** 32 - 1),
  };
  const names = Object.keys(checks);
  if (fields === null || typeof fields !== "object" || Object.keys(fields).sort().join() !== [...names].sort().join()) {
    throw mistake(`a kernel has the fields ${[...names].sort().join(", ")}, and no others`);
  }
  for (const name of names) if (!checks[name](fields[name])) throw mistake(`the field ${name} of a kernel is not what it must be`);
  return fields;
}

function words(value, low, high) {
  return Array.isArray(value) && value.every(item => Number.isSafeInteger(item) && low <= item && item <= high);
}
