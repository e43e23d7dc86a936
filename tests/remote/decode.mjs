// What the browser's decoder makes of frames: for `test_fuzz.py` and `benchmarks/fuzz_wire.py`.
//
//     node decode.mjs tapml/web < FRAMES        each frame: its length as 4 bytes, little-endian, and its bytes
//
// Writes one line a frame: "refused", or "ok" and the message packed again in hex, or "wrong" and what was thrown.

import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const { Malformed, control, decode, packet } = await import(pathToFileURL(resolve(process.argv[2], "wire.js")));

function answer(data) {
  let message;
  try {
    message = decode(data);
  } catch (error) {
    return error instanceof Malformed ? "refused" : `wrong ${error?.stack ?? error}`.replaceAll("\n", " ");
  }
  const { name, session, seq, ack, items } = message;
  const again = name === undefined ? packet(session, seq, ack, items) : control(name, ...message.arguments);
  return `ok ${Buffer.from(again).toString("hex")}`;
}

const input = readFileSync(0);
const lines = [];
for (let at = 0; at < input.length;) {
  const length = input.readUInt32LE(at);
  at += 4 + length;
  lines.push(answer(new Uint8Array(input.subarray(at - length, at))));
}
process.stdout.write(lines.join("\n") + "\n");
