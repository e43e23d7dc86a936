// The Gpu and what looks for it, over a WebGPU of which a test says what goes wrong.

import assert from "node:assert/strict";
import { test } from "node:test";

import { reasonAgainst, requestAdapter } from "../../../tapml/web/adapter.js";
import { Gpu } from "../../../tapml/web/gpu.js";
import { Platform } from "../../../tapml/web/platform.js";

globalThis.GPUBufferUsage = { STORAGE: 1, COPY_SRC: 2, COPY_DST: 4, MAP_READ: 8, UNIFORM: 16 };
globalThis.GPUMapMode = { READ: 1 };
globalThis.GPUOutOfMemoryError = class extends Error {};

const CHROMIUM = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36";
const FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
const IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1";

const limits = { maxBufferSize: 2 ** 40, maxStorageBufferBindingSize: 2 ** 64, maxComputeWorkgroupsPerDimension: 65535 };

// `errors` are handed to the error scopes of each kind that are popped next; `lost` resolves with why it was.
class FakeDevice extends EventTarget {
  limits = limits;
  features = new Set(["shader-f16"]);
  live = new Set();
  // What was given to the queue, in order: "submit N" and bytes that were written.
  queued = [];
  errors = { validation: [], "out-of-memory": [] };
  maps = () => Promise.resolve();
  #scopes = [];

  constructor(lost = new Promise(() => null)) {
    super();
    this.lost = lost;
    this.queue = {
      onSubmittedWorkDone: async () => undefined,
      submit: commands => this.queued.push(`submit ${commands.map(command => command.did).join()}`),
      writeBuffer: (memory, offset, bytes, start = 0, size = bytes.length) => this.queued.push(size),
    };
  }

  createBuffer({ size, usage }) {
    const buffer = {
      size, usage, destroy: () => this.live.delete(buffer), mapAsync: () => this.maps(), getMappedRange: () => new ArrayBuffer(size), unmap: () => null,
    };
    this.live.add(buffer);
    return buffer;
  }

  createCommandEncoder() {
    const did = [];
    const pass = { setPipeline() {}, setBindGroup() {}, end() {}, dispatchWorkgroups: () => did.push("launch") };
    return { beginComputePass: () => pass, copyBufferToBuffer: () => did.push("copy"), finish: () => ({ did: did.join("+") }) };
  }

  pushErrorScope(kind) {
    this.#scopes.push(kind);
  }

  async popErrorScope() {
    return this.errors[this.#scopes.pop()].shift() ?? null;
  }

  createBindGroup() {
    return {};
  }

  destroy() {
    this.live.clear();
  }
}

// A navigator whose adapter gives these devices, one after the other. With null for one the adapter has none.
function browserWith(devices, userAgent = CHROMIUM) {
  const adapter = {
    features: new Set(), limits, info: { vendor: "fake" },
    requestDevice: async () => devices.shift() ?? Promise.reject(new Error("no more")),
  };
  const requestAdapter = async () => (devices[0] === null ? devices.shift() : adapter);
  Object.defineProperty(globalThis, "navigator", { value: { userAgent, gpu: { requestAdapter } }, configurable: true });
}

async function opened() {
  const device = new FakeDevice();
  browserWith([device]);
  return { device, gpu: await Gpu.open() };
}

test("what was taken to read back is given back when the read fails", async () => {
  const { device, gpu } = await opened();
  const buffer = gpu.allocate(64);
  await buffer.ready;
  for (let i = 0; i < 5; ++i) {
    device.errors.validation.push({ message: "the launch was wrong" });
    await assert.rejects(gpu.read(buffer, 0, 4), /the launch was wrong/);
  }
  assert.equal(device.live.size, 1);
});

test("what a failed read told is not told to the next one", async () => {
  const { device, gpu } = await opened();
  const buffer = gpu.allocate(64);
  await buffer.ready;
  device.dispatchEvent(Object.assign(new Event("uncapturederror", { cancelable: true }), { error: { message: "on its own" } }));
  device.maps = () => Promise.reject(new Error("not mapped"));
  await assert.rejects(gpu.read(buffer, 0, 4), /on its own/);
  device.maps = () => Promise.resolve();
  assert.deepEqual(await gpu.read(buffer, 0, 4), new Uint8Array(4));
});

test("no room to read back is no room on the device, and spoils no launch", async () => {
  const { device, gpu } = await opened();
  const buffer = gpu.allocate(64);
  await buffer.ready;
  gpu.run(gpu.batch([{ kernel: { entry: "k", access: ["read_write"], grid: [1, 1, 1], pipeline: {}, groups: new Map() }, buffers: [buffer] }]));
  device.errors["out-of-memory"].push(new GPUOutOfMemoryError("no room"));
  device.errors.validation.push(null, { message: "the buffer is not valid" });
  await assert.rejects(gpu.read(buffer, 0, 4), { kind: "memory" });
  assert.deepEqual(device.queued, ["submit launch", "submit copy"]);
  device.queued.length = device.errors.validation.length = 0;
  await gpu.read(buffer, 0, 4);
  gpu.run(gpu.batch([{ kernel: { entry: "k", access: ["read_write"], grid: [1, 1, 1], pipeline: {}, groups: new Map() }, buffers: [buffer] }]));
  await gpu.read(buffer, 0, 4);
  assert.deepEqual(device.queued, ["submit copy", "submit launch+copy"]);  // with what it read into before, a step is one submission
});

test("large writes are handed on in pieces", async () => {
  const { device, gpu } = await opened();
  const buffer = gpu.allocate(2 ** 27);
  await buffer.ready;
  gpu.write(buffer, 0, new Uint8Array(2 ** 25 + 2 ** 20));
  gpu.write(buffer, 0, new Uint8Array(2 ** 25));
  const [piece, rest] = [2 ** 25, 2 ** 20];
  assert.deepEqual(device.queued, [piece, "submit ", rest, piece - rest, "submit ", rest]);
});

test("limits are numbers that the wire has", async () => {
  const { gpu } = await opened();
  assert.equal(gpu.info.limits.max_binding_bytes, 2 ** 53 - 1);
  assert.equal(gpu.info.limits.max_buffer_bytes, 2 ** 40);
});

test("each browser is told what helps there", async () => {
  const without = userAgent => reasonAgainst({ isSecureContext: true, navigator: { userAgent } });
  assert.match(without(FIREFOX), /141 on Windows/);
  assert.match(without(IPHONE), /iOS 26/);
  assert.match(reasonAgainst({ isSecureContext: false, navigator: { userAgent: CHROMIUM } }), /https address/);
  for (const [agent, known, strange] of [[CHROMIUM, /chrome:\/\/gpu/, /about:/], [FIREFOX, /about:support/, /chrome:/], [IPHONE, /no adapter/, /chrome:|about:/]]) {
    browserWith([null], agent);
    const { message } = await requestAdapter().catch(error => error);
    assert.match(message, known);
    assert.doesNotMatch(message, strange);
  }
});

// A Platform, and the states that it told, in order.
function looking(devices, heard = () => null) {
  browserWith(devices);
  const told = [];
  const platform = new Platform("a browser", () => {
    told.push(platform.offer.state);
    heard(platform.offer.state);
  });
  return { platform, told };
}

// Lets promises and timers without a pause come.
async function rest(t) {
  for (let i = 0; i < 20; ++i) {
    t.mock.timers.tick(0);
    await new Promise(resolve => setImmediate(resolve));
  }
}

test("a device that is lost as soon as it is given out is replaced", async t => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const good = new FakeDevice();
  const { platform, told } = looking([new FakeDevice(Promise.resolve({ message: "gone at once" })), good]);
  platform.look();
  await rest(t);
  assert.equal(platform.offer.state, "looking");
  t.mock.timers.tick(1000);
  await rest(t);
  assert.deepEqual([platform.offer.state, platform.lost], ["ready", 1]);
  assert.ok(await platform.open(null));
  assert.deepEqual(told, ["looking", "ready"]);
});

test("a device that is lost in the moment in which it is offered is replaced", async t => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  let lose;
  const devices = [new FakeDevice(new Promise(resolve => { lose = resolve; })), new FakeDevice()];
  const { platform, told } = looking(devices, state => { if (state === "ready") lose({ message: "gone" }); });
  platform.look();
  await rest(t);
  t.mock.timers.tick(1000);
  await rest(t);
  assert.deepEqual(told, ["looking", "ready", "looking", "ready"]);
  assert.ok(await platform.open(null));
});

test("where there is no GPU, that stays said while it is looked for again", async t => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { platform, told } = looking([null, null, null, null, null, null, new FakeDevice()]);
  platform.look();
  for (let i = 0; i < 40; ++i) {
    t.mock.timers.tick(1000);
    await rest(t);
  }
  assert.deepEqual(told.filter((state, i) => state !== told[i - 1]), ["looking", "absent", "ready"]);
});

test("why a GPU was lost ends with one full stop", async t => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { platform } = looking([new FakeDevice(Promise.resolve({ message: "It crashed." })), null, null]);
  platform.look();
  for (let i = 0; i < 5; ++i) {
    t.mock.timers.tick(1000);
    await rest(t);
  }
  assert.equal(platform.offer.state, "retired");
  assert.match(platform.offer.reason, /It crashed\. A browser/);
});
