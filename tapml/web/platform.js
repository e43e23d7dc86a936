// This browser's WebGPU, as the hub is told of it: found, lost, found again, or not to be had, and why.
//
//     const platform = new Platform("Chromium 156 on Linux", () => tell(platform.offers))
//     platform.look()
//     const gpu = await platform.open(null)          throws Failure "unavailable", or "target" for another device than this
//
// A device that was lost is replaced at once. Where no new one can be had, the offer becomes "retired" with the reason, and it is tried again now
// and then: browsers stop giving out devices after a few crashes of the driver, until the page is loaded again.

import { Failure } from "./failure.js";
import { Gpu } from "./gpu.js";

const LOOK_MILLISECONDS = 30000;
const AGAIN_MILLISECONDS = 15000;
const TRIES = 3;
const TRY_PAUSE = 500;

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

  look() {
    this.#looking ??= this.#find().finally(() => { this.#looking = null; });
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

  async #find() {
    this.#offer("looking", null, this.lostBecause);
    let reason = "";
    for (let i = 0; i < TRIES; ++i) {
      if (i) await new Promise(resolve => setTimeout(resolve, i * TRY_PAUSE));
      try {
        this.#take(await soon(Gpu.open(this.#browser)));
        return;
      } catch (error) {
        reason = Failure.of(error).message;
      }
    }
    const retired = this.lost > 0;
    const advice = "A browser gives out no new one for two minutes after a few crashes of its GPU driver; loading the page again helps at once.";
    this.#offer(retired ? "retired" : "absent", null, retired ? `${this.lostBecause}. ${advice}` : reason);
    setTimeout(() => this.look(), AGAIN_MILLISECONDS);
  }

  #take(gpu) {
    this.#gpu = gpu;
    this.#offer("ready", gpu.info, "");
    gpu.lost.then(reason => {
      if (this.#gpu !== gpu) return;
      this.#gpu = null;
      this.lost += 1;
      this.lostBecause = reason;
      this.look();
    });
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
