// The browser's modules in Node, asked over stdin and stdout by tests/remote/test_web.py, which compares what they say with what Python says.
//
// A question and its answer are MessagePack arrays, each after its length in four bytes:
//
//     ["channel", name, …arguments]            what that method of one Channel gives; "new" makes another one
//     ["session", budget, [[how, item], …]]    the answers of one Session over the fake Gpu; `how`: "carry", "drop", "read" (with more of them)

import { Channel, Gap } from "../../../tapml/web/channel.js";
import { decode as unpack, encode } from "../../../tapml/web/msgpack.js";
import { Session } from "../../../tapml/web/session.js";
import { Store } from "../../../tapml/web/store.js";
import { Malformed, decode } from "../../../tapml/web/wire.js";
import { FakeGpu } from "./fake_gpu.mjs";

let channel = null;

const ANSWERS = {
  channel: ([name, ...args]) => {
    if (name === "new") channel = new Channel(args[0]);
    else if (name === "take") return ["ok", channel.take(decode(args[0]))];
    else if (name === "done") channel.done(decode(args[0]));
    else if (name === "state") return ["ok", [channel.first, channel.taken, channel.inFlight]];
    else return ["ok", channel[name](...args)];
    return ["ok", null];
  },

  session: async ([budget, steps]) => {
    const gpu = new FakeGpu();
    const session = new Session({ open: () => gpu }, new Store(null, budget));
    const answers = [];
    for (let i = 0; i < steps.length; ++i) {
      const [how, item] = steps[i];
      if (how === "drop") answers.push(await session.drop(item));
      else if (how === "carry" && item[0] !== "read") answers.push(await session.carryOut(item));
      else {
        const items = [item];
        while (steps[i + 1]?.[0] === "read") items.push(steps[++i][1]);
        answers.push(...await (await session.read(items)).answers);
      }
    }
    await session.end();
    return ["ok", answers, session.launches, gpu.live.size];
  },
};

async function answer([what, ...args]) {
  try {
    return await ANSWERS[what](args);
  } catch (error) {
    if (error instanceof Malformed) return ["malformed", error.message];
    if (error instanceof Gap) return ["gap"];
    return ["threw", String(error.stack ?? error)];
  }
}

let waiting = new Uint8Array();
for await (const chunk of process.stdin) {
  waiting = Buffer.concat([waiting, chunk]);
  while (waiting.length >= 4) {
    const size = waiting.readUInt32BE();
    if (waiting.length < 4 + size) break;
    const packed = encode(await answer(unpack(new Uint8Array(waiting.subarray(4, 4 + size)))));
    waiting = waiting.subarray(4 + size);
    const head = Buffer.alloc(4);
    head.writeUInt32BE(packed.length);
    process.stdout.write(Buffer.concat([head, packed]));
  }
}
