// Keeps this browser a device: starts the worker, starts it again when it fails or hangs, tells it when the network or the page comes back, and keeps
// the screen on while it is connected. A worker that is started again goes by the name that the hub gave to the one before.
//
//     const keeper = new Keeper(settings, state => draw(state), token => remember(token))
//     keeper.start(); keeper.stop(); keeper.rename("phone")
//
// A page that holds a Web Lock is not frozen in the background by browsers that otherwise would.

const PING_MILLISECONDS = 5000;
// Pings that a worker leaves unanswered, while the page itself runs, before it is taken for dead.
const MOST_UNANSWERED = 6;
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30000;

// A worker that ran this long before it failed was no bad start.
const STEADY_MILLISECONDS = 60000;

export class Keeper {
  running = false;
  // Why the last worker was given up, and how many were.
  failures = 0;
  failure = "";
  #settings;
  #draw;
  #paired;
  #worker = null;
  #unanswered = 0;
  #pause = FIRST_PAUSE;
  #started = 0;
  #timer = null;
  #wakeLock = null;
  #lockRefused = false;
  // Whether somebody touched the page since it was shown: some browsers keep the screen on only then.
  #touched = false;
  #release = null;
  #working = false;

  // `settings` are those of worker.js's "start".
  constructor(settings, draw, paired) {
    this.#settings = settings;
    this.#draw = draw;
    this.#paired = paired;
    const nudge = () => {
      this.#lockRefused = this.#touched = false;
      this.#worker?.postMessage({ kind: "nudge" });
      this.#lockScreen();
    };
    addEventListener("online", nudge);
    addEventListener("pageshow", nudge);
    document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") nudge(); });
    for (const event of ["pointerup", "keydown"]) addEventListener(event, () => this.#touch());
    setInterval(() => this.#ping(), PING_MILLISECONDS);
  }

  start() {
    this.running = true;
    this.#begin();
    const held = new Promise(resolve => { this.#release = resolve; });
    navigator.locks?.request(`tapml-device-${crypto.randomUUID()}`, { mode: "shared" }, () => held).catch(() => null);  // it is only a wish
  }

  stop() {
    this.running = false;
    this.#end();
    this.#release?.();
    this.#working = false;
    this.#lockScreen();
  }

  rename(name) {
    this.#settings.name = name;
    if (this.running) this.#begin();
  }

  get settings() {
    return this.#settings;
  }

  #begin() {
    this.#end();
    const worker = new Worker("/web/worker.js", { type: "module" });
    this.#worker = worker;
    this.#unanswered = 0;
    this.#started = performance.now();
    worker.addEventListener("message", ({ data }) => { if (worker === this.#worker) this.#take(data); });
    worker.addEventListener("error", event => { if (worker === this.#worker) this.#failed(event.message || "its script could not be loaded"); });
    worker.addEventListener("messageerror", () => { if (worker === this.#worker) this.#failed("it sent something unreadable"); });
    worker.postMessage({ kind: "start", ...this.#settings });
  }

  #end() {
    clearTimeout(this.#timer);
    this.#worker?.terminate();
    this.#worker = null;
  }

  #take(data) {
    if (data.kind === "pong") this.#unanswered = 0;
    else if (data.kind === "failed") this.#failed(data.text);
    else if (data.kind === "paired") {
      this.#settings.pair = "";
      this.#settings.token = data.token;
      this.#paired(data.token);
    } else if (data.kind === "state") {
      if (data.connection === "connected") this.#settings.name = data.name;
      this.#working = data.connection === "connected" && data.offer?.state === "ready";
      this.#lockScreen();
      this.#draw(data);
    }
  }

  #ping() {
    if (!this.#worker) return;
    if (this.#unanswered >= MOST_UNANSWERED) {
      this.#failed("it does not answer; where that stays, start the browser anew");
      return;
    }
    this.#unanswered += document.visibilityState === "visible" ? 1 : 0;
    this.#worker.postMessage({ kind: "ping" });
  }

  #failed(why) {
    this.failures += 1;
    this.failure = why;
    this.#working = false;
    this.#end();
    this.#draw(null);
    if (performance.now() - this.#started > STEADY_MILLISECONDS) this.#pause = FIRST_PAUSE;
    this.#timer = setTimeout(() => { if (this.running) this.#begin(); }, this.#pause);
    this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE);
  }

  // A phone that sleeps is no device. Browsers take the lock away when the page is hidden, and some have none.
  async #lockScreen() {
    if (!this.#lockWanted) {
      this.#wakeLock?.release?.();
      this.#wakeLock = null;
    } else if (!this.#wakeLock && !this.#lockRefused && navigator.wakeLock) {
      const asking = this.#wakeLock = {};
      try {
        const lock = await navigator.wakeLock.request("screen");
        if (this.#wakeLock !== asking || !this.#lockWanted) {
          lock.release();
          return;
        }
        this.#wakeLock = lock;
        lock.addEventListener("release", () => { if (this.#wakeLock === lock) this.#wakeLock = null; });
      } catch {
        if (this.#wakeLock === asking) this.#wakeLock = null;
        this.#lockRefused = true;  // nobody touched the page yet, the battery is low, or the user does not want it
      }
    }
  }

  get #lockWanted() {
    return this.running && this.#working && document.visibilityState === "visible";
  }

  #touch() {
    this.#touched = true;
    if (!this.#lockRefused) return;
    this.#lockRefused = false;
    this.#lockScreen();
  }

  // Whether the screen stays on: "on", "touch" when it may once somebody touches the page, or "".
  get screen() {
    if (this.#wakeLock?.release) return "on";
    return this.#lockRefused && !this.#touched ? "touch" : "";
  }
}
