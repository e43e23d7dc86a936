// This browser's WebGPU, as the hub is told of it: found, lost, found again, or not to be had, and why.
//
//     const platform = new Platform("Chromium 156 on Linux", () => tell(platform.offers))
//     platform.look()
//     const gpu = await platform.open(null)          throws Failure "unavailable", or "target" for another device than this
//
// A device that was lost is replaced at once. Where no new one can be had, the offer becomes "retired" with the reason, and it is tried again now
// and then: browsers stop giving out devices after a few crashes of the driver, until the page is loaded again. What is said stays until that
// finds something else.

import { Failure } from "./failure.js";
import { Gpu } from "./gpu.js";
import { sentence } from "./words.js";

const LOOK_MILLISECONDS = 30000;
const AGAIN_MILLISECONDS = 15000;
const TRIES = 3;
const TRY_PAUSE = 500;
// A device that is lost sooner than this is no better than none, and the next one is not asked for at once.
const YOUNG_MILLISECONDS = 2000;

export class Platform {
  offer = { state: "looking", info: null, reason: "" };
  // How many devices were lost, and why the last one was.
  lost = 0;
  lostBecause = "";
  #browser;
  #changed;
  #gpu = null;
  #looking = null;

  constructor(browser, changed) {
    this.#browser = browser;
    this.#changed = changed;
  }

  get offers() {
    return { webgpu: this.offer };
  }

  look(pause = 0) {
    this.#looking ??= this.#find(pause);
    return this.#looking;
  }

  async open(device) {
    await this.#looking;
    if (!this.#gpu) throw new Failure("unavailable", this.offer.reason || "WebGPU is not there.");
    const { name } = this.#gpu.info;
    if (device !== null && device !== "0" && !name.toLowerCase().includes(device.toLowerCase())) {
      throw new Failure("target", `webgpu has no device with ${JSON.stringify(device)} in the name. It has: 0 = ${name}.`);
    }
    return this.#gpu;
  }

  async #find(pause) {
    if (this.offer.state === "looking" || this.offer.state === "ready") this.#offer("looking", null, this.lostBecause);
    let found = null;
    let reason = "";
    for (let i = 0; i < TRIES && !found; ++i) {
      const waiting = i * TRY_PAUSE || pause;
      if (waiting) await new Promise(resolve => setTimeout(resolve, waiting));
      try {
        found = await this.#try();
      } catch (error) {
        reason = Failure.of(error).message;
      }
    }
    this.#looking = null;
    if (found) this.#take(found);
    else this.#failed(reason);
  }

  // Some are lost as soon as they are given out.
  async #try() {
    const gpu = await soon(Gpu.open(this.#browser));
    const lost = await Promise.race([gpu.lost, new Promise(resolve => setTimeout(() => resolve(null), 0))]);
    if (lost === null) return gpu;
    this.lost += 1;
    this.lostBecause = lost;
    throw new Failure("unavailable", lost);
  }

  #take(gpu) {
    const taken = performance.now();
    this.#gpu = gpu;
    this.#offer("ready", gpu.info, "");
    gpu.lost.then(reason => {
      this.#gpu = null;
      this.lost += 1;
      this.lostBecause = reason;
      this.look(performance.now() - taken < YOUNG_MILLISECONDS ? TRY_PAUSE : 0);
    });
  }

  #failed(reason) {
    const retired = this.lost > 0;
    const advice = "A browser gives out no new one for two minutes after a few crashes of its GPU driver; loading the page again helps at once.";
    this.#offer(retired ? "retired" : "absent", null, retired ? `${sentence(this.lostBecause)} ${advice}` : reason);
    setTimeout(() => this.look(), AGAIN_MILLISECONDS);
  }

  #offer(state, info, reason) {
    this.offer = { state, info, reason };
    this.#changed();
  }
}

// A browser whose GPU process hangs does not answer at all.
function soon(promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Failure("unavailable", "The browser's GPU does not answer.")), LOOK_MILLISECONDS);
  });
  promise.then(gpu => { if (timer === null) gpu.end("It came too late."); }, () => null);
  return Promise.race([promise, late]).finally(() => { clearTimeout(timer); timer = null; });
}
