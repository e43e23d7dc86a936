// A time limit over a clock that a test moves: a page that was frozen is not late.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { after } from "../../../tapml/web/deadline.js";

let now;
let timers;

beforeEach(() => {
  now = 0;
  timers = [];
  globalThis.performance.now = () => now;
  globalThis.setTimeout = (act, milliseconds) => timers.push({ act, at: now + milliseconds });
  globalThis.clearTimeout = id => { timers[id - 1] = null; };
});

// Time goes on, in which the page lives.
function live(milliseconds) {
  const end = now + milliseconds;
  for (;;) {
    const due = timers.findIndex(timer => timer && timer.at <= end);
    if (due < 0) break;
    const { act, at } = timers[due];
    timers[due] = null;
    now = Math.max(now, at);
    act();
  }
  now = end;
}

test("it acts when the time is over, and not before", () => {
  let acted = 0;
  after(3500, () => { acted += 1; });
  live(3499);
  assert.equal(acted, 0);
  live(1);
  assert.equal(acted, 1);
  live(10000);
  assert.equal(acted, 1);
});

test("it can be stopped", () => {
  after(3500, () => assert.fail("it was stopped"))();
  const stop = after(3500, () => assert.fail("it was stopped"));
  live(2000);
  stop();
  live(10000);
});

test("time in which the page was frozen does not count", () => {
  let acted = 0;
  after(10000, () => { acted += 1; });
  live(4200);
  now += 3600000;
  live(3500);  // for a second more than it lasted, at most
  assert.equal(acted, 0);
  live(2000);
  assert.equal(acted, 1);
});
