// A Gpu of tapml/web/gpu.js without a GPU, for tests of what stands on it: a kernel whose source is "add N" adds N to each byte of its first buffer and
// puts the sums into its last. A source with "refused" is refused, a grid of more than 100 cannot be launched.

import { Failure, mistake } from "../../../tapml/web/failure.js";

export const LARGEST = 2 ** 33;

export class FakeGpu {
  launches = 0;
  ended = "";
  flushed = 0;
  live = new Set();
  #waiting = new Set();

  constructor() {
    this.info = {
      platform: "webgpu", name: "fake", driver: "none", software: true, limits: { max_buffer_bytes: LARGEST, max_binding_bytes: LARGEST }, features: [],
    };
    // Set by a test to a promise that reads wait for.
    this.held = null;
  }

  allocate(nbytes) {
    this.#check();
    const size = Math.max(4, Math.ceil(nbytes / 4) * 4);
    if (size > LARGEST) throw new Failure("memory", "too large");
    const buffer = { size, nbytes, ready: Promise.resolve() };
    // As on a real device, room is found or not only later.
    if (size > 2 ** 28) buffer.ready = Promise.resolve().then(() => { throw new Failure("memory", "no room"); });
    else {
      buffer.memory = new Uint8Array(size);
      this.live.add(buffer);
    }
    return buffer;
  }

  free(buffer) {
    this.live.delete(buffer);
    buffer.freed = true;
  }

  write(buffer, offset, bytes) {
    this.#check();
    checkRange(buffer, offset, bytes.length);
    buffer.memory?.set(bytes, offset);
    return offset % 4 ? Promise.resolve() : undefined;
  }

  async readMany(parts) {
    this.#check();
    for (const { buffer, offset, nbytes } of parts) checkRange(buffer, offset, nbytes);
    const found = parts.map(({ buffer, offset, nbytes }) => buffer.memory.slice(offset, offset + nbytes));
    await this.#wait(this.held ?? Promise.resolve());
    return found;
  }

  async load(kernel) {
    await Promise.resolve();
    if (kernel.language !== "wgsl" || kernel.source.includes("refused")) throw new Failure("device", "refused", "driver");
    const loaded = { ...kernel, pipeline: {}, unloaded: false };
    this.live.add(loaded);
    return loaded;
  }

  unload(kernel) {
    this.live.delete(kernel);
    kernel.unloaded = true;
  }

  batch(launches) {
    for (const { kernel, buffers } of launches) {
      if (kernel.access.length !== buffers.length) throw mistake("takes another number of buffers");
      buffers.forEach((buffer, i) => {
        if (kernel.access[i] !== "read" && buffers.indexOf(buffer) !== buffers.lastIndexOf(buffer)) throw mistake("bound twice");
      });
    }
    return { launches };
  }

  forget() {
    return undefined;
  }

  run({ launches }) {
    this.#check();
    for (const { kernel, buffers } of launches) {
      if (kernel.unloaded || buffers.some(buffer => buffer.freed)) throw mistake("given back");
    }
    if (launches.some(({ kernel }) => kernel.grid[0] > 100)) throw new Failure("device", "too many workgroups", "launch");
    for (const { kernel, buffers } of launches) {
      const more = Number(kernel.source.slice(4));
      const to = buffers.at(-1).memory;
      buffers[0].memory.subarray(0, to.length).forEach((byte, i) => { to[i] = byte + more; });
      this.launches += 1;
    }
  }

  flush() {
    this.flushed += 1;
  }

  async synchronize() {
    this.#check();
    await this.#wait(this.held ?? Promise.resolve());
  }

  end(reason) {
    this.ended = reason;
    for (const reject of this.#waiting) reject(new Failure("lost", reason));
  }

  #wait(promise) {
    return new Promise((resolve, reject) => {
      this.#waiting.add(reject);
      promise.then(resolve, reject);
    });
  }

  #check() {
    if (this.ended) throw new Failure("lost", this.ended);
  }
}

function checkRange(buffer, offset, nbytes) {
  if (offset + nbytes > buffer.size) throw mistake("outside");
}
