// One session as this device serves it: packets come in, requests are carried out in order, answers go out in order. tapml/remote/agent/serving.py is the
// same for an agent.
//
//     const serving = new Serving(name, new Session(platform, store), send, before)
//     serving.take(packet)          returns at once
//     await serving.end()           the lease is over: all is freed
//
// It outlives connections: `send` may drop what it is given, since the channel keeps a packet until it is acknowledged and sends it again
// when the client resumes. Reads do not hold up what comes after them, so several are on their way from the GPU at a time; their answers
// keep their place. A request that was cancelled and has not ended two seconds later is ended with the device; one that is done and whose answer
// waits for the client to take it is no such request.

import { Channel, Gap } from "./channel.js";
import { after } from "./deadline.js";
import { ANSWERED } from "./session.js";
import { MESSAGE_LIMIT, Malformed, WINDOW } from "./wire.js";

const CANCEL_MILLISECONDS = 2000;
// A client that waits hears this often that something was done, where there is nothing to answer.
const SIGN_MILLISECONDS = 1000;

// A client has at most a window, and the packet that fills it, on the way; what is more is not taken.
const MOST_QUEUED = WINDOW + 2 * MESSAGE_LIMIT;
// Answers that are together larger than this are not held back for the next ones.
const ENOUGH = 2 ** 16;
// Bytes of reads that stand side by side, and of all that are on their way from the GPU.
const MOST_SIDE_BY_SIDE = 2 ** 22;
const MOST_READING = 2 ** 24;

export class Serving {
  #session;
  #send;
  #before;
  #channel;
  #tasks = [];
  #next = 0;
  #queuedBytes = 0;
  #working = false;
  #underWay = null;
  #unfinished = [];
  #finishing = false;
  #readingBytes = 0;
  #answers = [];
  #answersBytes = 0;
  #seen = 0;
  #cancelledTo = 0;
  #spoke = performance.now();
  #woken = [];
  #ended = null;

  constructor(name, session, send, before = Promise.resolve()) {
    this.name = name;
    this.#session = session;
    this.#send = send;
    this.#before = before;
    this.#channel = new Channel(name);
  }

  get ended() {
    return this.#ended !== null;
  }

  get launches() {
    return this.#session.launches;
  }

  // Since when the oldest request that is under way has been, in milliseconds of performance.now(); null when there is none.
  get busySince() {
    return (this.#unfinished.find(each => !each.settled) ?? this.#underWay)?.since ?? null;
  }

  take(packet) {
    if (this.#ended || (packet.seq && this.#queuedBytes + packet.nbytes > MOST_QUEUED)) return;
    let items;
    try {
      items = this.#channel.take(packet);
    } catch (error) {
      if (error instanceof Gap) this.#send(this.#channel.bare([["resend"]]));
      else if (error instanceof Malformed) this.#lose(`The session cannot continue: ${error.message}.`);
      else throw error;
      return;
    }
    this.#wake();
    if (!packet.seq) {
      for (const [name, value] of items) {
        if (name === "cancel") this.#cancel(value);
        else if (name === "resume") this.#sendAgain([["resumed"]]);
        else if (name === "resend") this.#sendAgain();
      }
      return;
    }
    if (!items.length) return;
    this.#queuedBytes += packet.nbytes;
    items.forEach((item, i) => {
      if (ANSWERED.has(item[0])) this.#seen = item[1];
      // What is not answered goes with the next request that is.
      const number = ANSWERED.has(item[0]) ? item[1] : this.#seen + 1;
      this.#tasks.push({ item, number, packet: i === items.length - 1 ? packet : null });
    });
    if (!this.#working) this.#work();
  }

  // May be called twice.
  end() {
    if (!this.#ended) {
      this.#session.endedBecause = this.busySince === null ? "" : "The session was ended while a request was under way.";
      this.#ended = this.#session.end();
      this.#wake();
    }
    return this.#ended;
  }

  async #work() {
    this.#working = true;
    try {
      await this.#before;
      while (this.#next < this.#tasks.length && !this.#ended) {
        const task = this.#tasks[this.#next++];
        if (this.#next === this.#tasks.length) {
          this.#tasks = [];
          this.#next = 0;
        }
        await this.#carryOut(task);
      }
    } catch (error) {
      this.#lose(`The page cannot go on with this session: ${error.message}`);
    }
    this.#working = false;
    this.#session.flush();
    this.#finish();
  }

  async #carryOut(task) {
    const cancelled = task.number <= this.#cancelledTo;
    if (task.item[0] === "read" && !cancelled) return this.#read(task);
    this.#underWay = { number: task.number, since: performance.now() };
    const carried = cancelled ? this.#session.drop(task.item) : this.#session.carryOut(task.item);
    const answer = carried instanceof Promise ? await carried : carried;
    this.#underWay = null;
    this.#hand([task], [answer], null);
    return undefined;
  }

  // A read with those that follow it at once.
  async #read(first) {
    const tasks = [first];
    let bytes = first.item[4];
    while (this.#next < this.#tasks.length) {
      const { item, number } = this.#tasks[this.#next];
      if (item[0] !== "read" || number <= this.#cancelledTo || bytes + item[4] > MOST_SIDE_BY_SIDE) break;
      bytes += item[4];
      tasks.push(this.#tasks[this.#next++]);
    }
    while (this.#readingBytes && this.#readingBytes + bytes > MOST_READING && !this.#ended) await this.#change();
    while (tasks.length && tasks[0].number <= this.#cancelledTo) {  // meanwhile
      const task = tasks.shift();
      bytes -= task.item[4];
      this.#hand([task], [this.#session.drop(task.item)], null);
    }
    if (!tasks.length) return;
    this.#underWay = { number: tasks[0].number, since: performance.now() };
    const { answers } = await this.#session.read(tasks.map(task => task.item));
    this.#underWay = null;
    this.#readingBytes += bytes;
    this.#hand(tasks, null, answers, bytes);
  }

  #hand(tasks, answers, coming, bytes = 0) {
    const entry = { tasks, answers, coming, bytes, since: performance.now(), settled: !coming };
    coming?.then(() => { entry.settled = true; });
    this.#unfinished.push(entry);
    this.#finish();
  }

  // Answers in order, each packet acknowledged when the last of its requests is done.
  async #finish() {
    if (this.#finishing) return;
    this.#finishing = true;
    while (this.#unfinished.length && !this.#ended) {
      const { tasks, answers, coming, bytes } = this.#unfinished[0];
      const found = answers ?? await coming;
      for (let i = 0; i < tasks.length; ++i) {
        const { packet } = tasks[i];
        if (found[i]) this.#answer(found[i]);
        if (packet) {
          this.#channel.done(packet);
          this.#queuedBytes -= packet.nbytes;
        }
        if (this.#answers.length && (packet || this.#answersBytes > ENOUGH)) await this.#sendAnswers();
      }
      this.#unfinished.shift();
      this.#readingBytes -= bytes;
      this.#wake();
    }
    this.#finishing = false;
    const idle = !this.#working && !this.#unfinished.length;
    const due = this.#ended ? null : this.#channel.due(idle || performance.now() - this.#spoke > SIGN_MILLISECONDS);
    if (!due) return;
    this.#spoke = performance.now();
    this.#send(due);
  }

  #answer(answer) {
    this.#answers.push(answer);
    const value = answer.at(-1);
    this.#answersBytes += 64 + (value instanceof Uint8Array ? value.length : typeof value === "string" ? 4 * value.length : 0);
  }

  async #sendAnswers() {
    while (this.#channel.inFlight >= WINDOW && !this.#ended) await this.#change();
    if (this.#ended) return;
    const answers = this.#answers;
    const together = this.#answersBytes <= MESSAGE_LIMIT / 2;
    this.#answers = [];
    this.#answersBytes = 0;
    for (const items of together ? [answers] : answers.map(one => [one])) this.#send(this.#channel.pack(items));
  }

  #cancel(number) {
    this.#cancelledTo = Math.max(this.#cancelledTo, number);
    const late = () => this.#unfinished.find(each => !each.settled && each.tasks[0].number <= number) ?? this.#underWay;
    const one = late();
    if (!one || (one === this.#underWay && one.number > number)) return;
    after(CANCEL_MILLISECONDS, () => {
      if (late() !== one || this.#ended) return;
      const text = `The device was ended: a request was cancelled and did not end within ${CANCEL_MILLISECONDS / 1000} s.`;
      this.#session.endedBecause = text;
      this.#session.endDevice(text);
    });
  }

  #sendAgain(said = []) {
    if (said.length) this.#send(this.#channel.bare(said));
    for (const data of this.#channel.unacknowledged()) this.#send(data);
  }

  #lose(text) {
    this.#send(this.#channel.bare([["lost", text]]));
    this.end();
  }

  // Resolves when something was acknowledged, handed out or ended.
  #change() {
    return new Promise(resolve => this.#woken.push(resolve));
  }

  #wake() {
    const woken = this.#woken;
    this.#woken = [];
    for (const resolve of woken) resolve();
  }
}
