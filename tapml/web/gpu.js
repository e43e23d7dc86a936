// The runtime interface over WebGPU: buffers, kernels and batches of one GPUDevice. The numbers that a client gives them are session.js's.
//
//     const gpu = await Gpu.open()                     throws Failure "unavailable" with the reason
//     const x = gpu.allocate(4096)                     `await x.ready` says whether there was room
//     const kernel = await gpu.load(parsed, digest)
//     gpu.write(x, 0, bytes); gpu.run(gpu.batch([{ kernel, buffers: [x, y] }])); await gpu.read(y, 0, 4096)
//
// Launches gather in one command encoder and one compute pass until something must see their results or be seen by them (a write, a read) or `flush`
// is called, so a decode step is one submission: its launches and the copy that its read needs. Each submission has one error scope, and
// what it caught is thrown by the next `read` or `synchronize`. Buffers for reading back are used again.
//
// When the device is lost, everything that waits and every later call throws Failure "lost", and `gpu.lost` resolves with the reason. `end`
// gives the device up: that is how a kernel that never returns is left behind.

import { FEATURES, describe, requestAdapter } from "./adapter.js";
import { Failure, mistake } from "./failure.js";

// Compiled kernels that are kept after they were unloaded, for the next session.
const MOST_PIPELINES = 2048;
// Launches that are recorded before the GPU is given them.
const MOST_RECORDED = 2000;
const MOST_DESTROYED = 2 ** 26;
const MOST_STAGING_BYTES = 2 ** 25;
const LEAST_STAGING_BYTES = 2 ** 12;
const LOST_MILLISECONDS = 1000;
// Bytes that are written before the queue is made to take them on: some browsers keep what was written in staging memory until the next submission.
const MOST_WRITTEN = 2 ** 25;

// As the page can ask for them; what is not named keeps WebGPU's default.
const LIMITS = [
  "maxBufferSize", "maxStorageBufferBindingSize", "maxStorageBuffersPerShaderStage", "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX", "maxComputeWorkgroupSizeY", "maxComputeWorkgroupSizeZ", "maxComputeWorkgroupStorageSize",
  "maxComputeWorkgroupsPerDimension",
];

export class Gpu {
  #device;
  #queue;
  #encoder = null;
  #pass = null;
  #pipeline = null;
  #plans = [];
  #recorded = 0;
  #scopes = [];
  #doomed = [];
  #destroyedBytes = 0;
  #staging = [];
  #stagingBytes = 0;
  #writtenBytes = 0;
  #pipelines = new Map();
  #waiting = new Set();
  #uncaught = null;
  #reason = "";
  #wasLost = null;

  constructor(device, info) {
    this.info = info;
    this.launches = 0;
    this.lost = new Promise(resolve => { this.#wasLost = resolve; });
    this.#device = device;
    this.#queue = device.queue;
    device.addEventListener("uncapturederror", event => {
      event.preventDefault();
      this.#uncaught ??= failed(this.info.name, "the device", event.error);
    });
    device.lost.then(({ message }) => this.#lose(`${info.name} was lost: ${message || "the browser gives no reason"}`));
  }

  static async open(browser = "") {
    const adapter = await requestAdapter();
    const requiredFeatures = Object.keys(FEATURES).filter(name => adapter.features.has(name));
    const requiredLimits = Object.fromEntries(LIMITS.filter(name => name in adapter.limits).map(name => [name, adapter.limits[name]]));
    let device;
    try {
      device = await adapter.requestDevice({ requiredFeatures, requiredLimits });
    } catch (error) {
      throw new Failure("unavailable", `The adapter gives no device: ${error.message}`);
    }
    return new Gpu(device, describe(adapter, device, browser));
  }

  allocate(nbytes) {
    this.#check();
    const size = Math.max(4, Math.ceil(nbytes / 4) * 4);
    const largest = Math.min(this.info.limits.max_buffer_bytes, this.info.limits.max_binding_bytes);
    if (size > largest) throw new Failure("memory", `A buffer of ${size} bytes is more than ${this.info.name} can bind (${largest}).`);
    if (this.#doomed.length) this.flush();
    this.#device.pushErrorScope("validation");
    this.#device.pushErrorScope("out-of-memory");
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const memory = this.#device.createBuffer({ size, usage });
    const ready = this.#waitFor(Promise.all([this.#popScope(), this.#popScope()])).then(([full, wrong]) => {
      if (full) throw new Failure("memory", `${this.info.name} has no room for ${size} bytes: ${full.message || "out of memory"}`);
      if (wrong) throw failed(this.info.name, `allocating ${size} bytes`, wrong);
    });
    return { memory, size, nbytes, ready, groups: new Map(), plans: new Set() };
  }

  free(buffer) {
    for (const [kernel, keys] of buffer.groups) for (const key of keys) kernel.groups.delete(key);
    for (const plan of buffer.plans) plan.stale = true;
    if (this.#encoder) this.#doomed.push(buffer.memory);
    else this.#destroy(buffer.memory);
  }

  // Nothing to wait for, as a rule; a promise where bytes begin or end within a 32-bit word, since copies go by whole words.
  write(buffer, offset, bytes) {
    this.#check();
    checkRange(buffer.size, offset, bytes.length);
    if (!bytes.length) return undefined;
    this.flush();
    const end = offset + bytes.length;
    if (offset % 4 || (end % 4 && end !== buffer.nbytes)) return this.#merge(buffer, offset, bytes);
    const whole = bytes.length - (bytes.length % 4);
    for (let at = 0; at < whole;) {
      const size = Math.min(whole - at, MOST_WRITTEN - this.#writtenBytes);
      this.#queue.writeBuffer(buffer.memory, offset + at, bytes, at, size);
      at += size;
      this.#writtenBytes += size;
      if (this.#writtenBytes === MOST_WRITTEN) this.#submit([]);
    }
    if (whole < bytes.length) {
      const word = new Uint8Array(4);
      word.set(bytes.subarray(whole));
      this.#queue.writeBuffer(buffer.memory, offset + whole, word);
    }
    return undefined;
  }

  async #merge(buffer, offset, bytes) {
    const first = offset - (offset % 4);
    const last = Math.ceil((offset + bytes.length) / 4) * 4;
    const words = await this.read(buffer, first, last - first);
    words.set(bytes, offset - first);
    this.#queue.writeBuffer(buffer.memory, first, words);
  }

  async read(buffer, offset, nbytes) {
    return (await this.readMany([{ buffer, offset, nbytes }]))[0];
  }

  // Several reads with one copy into one buffer that is mapped once. They are recorded before this returns its promise.
  async readMany(parts) {
    this.#check();
    let size = 0;
    const copies = parts.map(({ buffer, offset, nbytes }) => {
      checkRange(buffer.size, offset, nbytes);
      const first = offset - (offset % 4);
      const length = nbytes ? Math.ceil((offset + nbytes) / 4) * 4 - first : 0;
      const at = size;
      size += Math.ceil(length / 8) * 8;  // what is mapped begins at a multiple of 8
      return { memory: buffer.memory, first, length, at, skip: offset - first, nbytes };
    });
    if (!size) {
      await this.synchronize();
      return parts.map(() => new Uint8Array());
    }
    const staging = this.#takeStaging(size);
    try {
      const encoder = this.#record();
      this.#endPass();
      for (const { memory, first, length, at } of copies) if (length) encoder.copyBufferToBuffer(memory, first, staging, at, length);
      this.flush();
      await this.#settled(staging.mapAsync(GPUMapMode.READ, 0, size).catch(reason => this.#unanswered(reason)));
      const bytes = new Uint8Array(staging.getMappedRange(0, size));
      const results = copies.map(({ at, skip, nbytes }) => bytes.slice(at + skip, at + skip + nbytes));
      staging.unmap();
      this.#giveStaging(staging);
      return results;
    } catch (error) {
      staging.destroy();
      throw error;
    }
  }

  // `kernel` is as session.js checked it; kernels with the same `key` are compiled once.
  async load(kernel, key) {
    this.#check();
    if (kernel.language !== "wgsl") {
      throw new Failure("device", `${this.info.platform} takes wgsl, and kernel ${kernel.entry} is ${kernel.language}`, "driver");
    }
    let made = this.#pipelines.get(key);
    if (!made) {
      made = this.#compile(kernel);
      made.catch(() => this.#pipelines.delete(key));
    }
    // The one used longest ago is first, and the first to be forgotten.
    this.#pipelines.delete(key);
    this.#pipelines.set(key, made);
    if (this.#pipelines.size > MOST_PIPELINES) this.#pipelines.delete(this.#pipelines.keys().next().value);
    const { pipeline, layout } = await made;
    const uniform = kernel.uniform.length ? this.#uniform(kernel.uniform) : null;
    return { entry: kernel.entry, access: kernel.access, grid: kernel.grid, pipeline, layout, uniform, groups: new Map(), unloaded: false };
  }

  unload(kernel) {
    kernel.unloaded = true;
    for (const { buffers } of kernel.groups.values()) for (const buffer of buffers) buffer.groups.delete(kernel);
    kernel.groups.clear();
    if (kernel.uniform && this.#encoder) this.#doomed.push(kernel.uniform);
    else kernel.uniform?.destroy();
  }

  async #compile(kernel) {
    const device = this.#device;
    const types = kernel.access.map(mode => (mode === "read" ? "read-only-storage" : "storage"));
    if (kernel.uniform.length) types.push("uniform");
    device.pushErrorScope("validation");
    const entries = types.map((type, binding) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } }));
    const layout = device.createBindGroupLayout({ entries });
    const module = device.createShaderModule({ code: kernel.source });
    const compute = { module, entryPoint: kernel.entry };
    const made = device.createComputePipelineAsync({ layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }), compute })
      .then(pipeline => ({ pipeline }), error => ({ error }));
    const refused = this.#popScope();
    const [{ pipeline, error }, invalid] = await this.#waitFor(Promise.all([made, refused]));
    if (pipeline && !invalid) return { pipeline, layout };
    if (!this.#reason && error?.reason === "internal") {
      throw new Failure("device", `${this.info.name} failed to compile kernel ${kernel.entry}: ${error.message}`, "driver");
    }
    const log = [invalid?.message ?? error.message];
    const { messages } = await this.#waitFor(module.getCompilationInfo().catch(reason => this.#unanswered(reason)));
    for (const { type, lineNum, linePos, message } of messages) {
      if (!log[0].includes(message)) log.push(`${lineNum}:${linePos} ${type}: ${message}`);
    }
    throw new Failure("device", `${this.info.name} refused kernel ${kernel.entry}: ${log.join("\n")}`, "driver");
  }

  #uniform(words) {
    const size = Math.ceil(words.length / 4) * 16;
    const memory = this.#device.createBuffer({ size, usage: GPUBufferUsage.UNIFORM, mappedAtCreation: true });
    new Uint32Array(memory.getMappedRange()).set(words.map(word => word >>> 0));
    memory.unmap();
    return memory;
  }

  // Launches that are checked and bound once: [{kernel, buffers}, …]. With `kept` it may be run any number of times until `forget`.
  batch(launches, kept = false) {
    this.#check();
    const most = this.info.limits.max_workgroups_per_dimension;
    const plan = { launches: [], buffers: new Set(), stale: false, refused: null };
    for (const { kernel, buffers } of launches) {
      checkBinding(kernel, buffers);
      if (Math.max(...kernel.grid) > most) {
        const what = `launch of ${kernel.entry} failed on ${this.info.name}: ${kernel.grid.join(" × ")} workgroups`;
        plan.refused ??= new Failure("device", `${what}, where ${most} along a dimension are allowed`, "launch");
      }
      plan.launches.push({ kernel, group: this.#group(kernel, buffers) });
      if (kept) for (const buffer of buffers) plan.buffers.add(buffer);
    }
    for (const buffer of plan.buffers) buffer.plans.add(plan);
    return plan;
  }

  // For a kept batch that is not run again.
  forget(plan) {
    for (const buffer of plan.buffers) buffer.plans.delete(plan);
  }

  #group(kernel, buffers) {
    const key = buffers.map(buffer => (buffer.id ??= ++lastId)).join();
    const known = kernel.groups.get(key);
    if (known) return known.group;
    const memories = buffers.map(buffer => buffer.memory);
    if (kernel.uniform) memories.push(kernel.uniform);
    const group = this.#device.createBindGroup({
      layout: kernel.layout, entries: memories.map((buffer, binding) => ({ binding, resource: { buffer } })),
    });
    kernel.groups.set(key, { group, buffers });
    for (const buffer of buffers) {
      if (!buffer.groups.has(kernel)) buffer.groups.set(kernel, new Set());
      buffer.groups.get(kernel).add(key);
    }
    return group;
  }

  run(plan) {
    this.#check();
    if (plan.stale) throw mistake("a buffer of the batch was given back");
    if (plan.refused) throw plan.refused;
    for (const { kernel } of plan.launches) if (kernel.unloaded) throw mistake(`kernel ${kernel.entry} was given back`);
    if (!plan.launches.length) return;
    this.#record();
    this.#pass ??= this.#encoder.beginComputePass();
    for (const { kernel, group } of plan.launches) {
      if (kernel.pipeline !== this.#pipeline) {
        this.#pipeline = kernel.pipeline;
        this.#pass.setPipeline(kernel.pipeline);
      }
      this.#pass.setBindGroup(0, group);
      this.#pass.dispatchWorkgroups(...kernel.grid);
    }
    this.#plans.push(plan);
    this.launches += plan.launches.length;
    this.#recorded += plan.launches.length;
    if (this.#recorded > MOST_RECORDED) this.flush();
  }

  // Submits what was recorded.
  flush() {
    if (!this.#encoder) return;
    this.#endPass();
    const plans = this.#plans;
    this.#submit([this.#encoder.finish()]);
    const caught = this.#popScope().then(error => {
      const names = [...new Set(plans.flatMap(plan => plan.launches.map(launch => launch.kernel.entry)))];
      return error ? failed(this.info.name, `launch of ${names.join(", ").slice(0, 200)}`, error) : null;
    }, () => null);
    this.#scopes.push(caught);
    this.#encoder = null;
    this.#plans = [];
    this.#recorded = 0;
    for (const memory of this.#doomed) this.#destroy(memory);
    this.#doomed = [];
  }

  // Chromium gives memory back at the next submission only, and there may be none for long.
  #destroy(memory) {
    memory.destroy();
    this.#destroyedBytes += memory.size;
    if (this.#destroyedBytes >= MOST_DESTROYED) this.#submit([]);
  }

  #submit(commands) {
    this.#destroyedBytes = this.#writtenBytes = 0;
    this.#queue.submit(commands);
  }

  #record() {
    if (!this.#encoder) {
      this.#device.pushErrorScope("validation");
      this.#encoder = this.#device.createCommandEncoder();
    }
    return this.#encoder;
  }

  #endPass() {
    this.#pass?.end();
    this.#pass = null;
    this.#pipeline = null;
  }

  async synchronize() {
    this.#check();
    this.flush();
    await this.#settled(this.#queue.onSubmittedWorkDone());
  }

  // Waits for a promise and for what went wrong in all submissions before; throws the first of that, which says more than what followed from it.
  async #settled(promise) {
    const scopes = this.#scopes;
    this.#scopes = [];
    const came = promise.then(() => null, error => error);
    const [error, ...caught] = await this.#waitFor(Promise.all([came, ...scopes]));
    const failure = caught.find(Boolean) ?? this.#uncaught ?? error;
    this.#uncaught = null;
    if (failure) throw failure;
  }

  // The promise, or Failure "lost" when the device is lost before. (A race with `lost` would keep every promise alive for as long as that.)
  #waitFor(promise) {
    return new Promise((resolve, reject) => {
      if (this.#reason) reject(new Failure("lost", this.#reason));
      this.#waiting.add(reject);
      promise.then(value => (this.#reason ? undefined : resolve(value)), reject).finally(() => this.#waiting.delete(reject));
    });
  }

  #popScope() {
    return this.#device.popErrorScope().catch(reason => this.#unanswered(reason));
  }

  // The browser did not carry out what it promised: as a rule because the device was lost, which is known a moment later.
  async #unanswered(reason) {
    await new Promise(resolve => setTimeout(resolve, LOST_MILLISECONDS));
    throw new Failure("device", `${this.info.name} failed: ${reason.message}`, "launch");
  }

  #takeStaging(size) {
    let capacity = LEAST_STAGING_BYTES;
    while (capacity < size) capacity *= 2;
    const found = this.#staging.findIndex(memory => memory.size === capacity);
    if (found >= 0) {
      this.#stagingBytes -= capacity;
      return this.#staging.splice(found, 1)[0];
    }
    // A buffer that there is no room for spoils the submission that uses it: that must not be the one with the launches.
    this.flush();
    this.#device.pushErrorScope("out-of-memory");
    const made = this.#device.createBuffer({ size: capacity, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    this.#scopes.push(this.#popScope().then(error => (error ? failed(this.info.name, `making room to read ${size} bytes`, error) : null), () => null));
    return made;
  }

  #giveStaging(memory) {
    if (this.#stagingBytes + memory.size > MOST_STAGING_BYTES) memory.destroy();
    else {
      this.#stagingBytes += memory.size;
      this.#staging.push(memory);
    }
  }

  // Gives the device up: everything that waits fails with this reason. It is destroyed when it has come to rest: before that, Chromium's GPU
  // process would stand still until the kernel returns, and with it every other device of the browser.
  end(reason) {
    this.#lose(reason);
    const destroy = () => this.#device.destroy();
    this.#queue.onSubmittedWorkDone().then(destroy, destroy);
  }

  #lose(reason) {
    if (this.#reason) return;
    this.#reason = reason;
    this.#encoder = this.#pass = null;
    for (const reject of this.#waiting) reject(new Failure("lost", reason));
    this.#waiting.clear();
    this.#wasLost(reason);
  }

  #check() {
    if (this.#reason) throw new Failure("lost", this.#reason);
  }
}

let lastId = 0;

function failed(name, what, error) {
  const kind = globalThis.GPUOutOfMemoryError && error instanceof GPUOutOfMemoryError ? "memory" : "device";
  return new Failure(kind, `${what} failed on ${name}: ${error.message}`, kind === "device" ? "launch" : "");
}

function checkRange(capacity, offset, nbytes) {
  if (offset + nbytes > capacity) throw mistake(`bytes ${offset} to ${offset + nbytes} are outside of a buffer of ${capacity} bytes`);
}

// As many buffers as the kernel declares, and one that is written to one argument only.
function checkBinding(kernel, buffers) {
  const { entry, access } = kernel;
  if (access.length !== buffers.length) throw mistake(`kernel ${entry} takes ${access.length} buffers; the launch binds ${buffers.length}`);
  buffers.forEach((buffer, i) => {
    if (access[i] !== "read" && buffers.indexOf(buffer) !== buffers.lastIndexOf(buffer)) {
      throw mistake(`kernel ${entry} writes a buffer that is also bound to another argument`);
    }
  });
}
