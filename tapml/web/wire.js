// Messages between a device, the hub and a client: packing, and unpacking with every field checked. The format is docs/wire.md; the Python side
// is tapml/remote/wire.py, and the tables below are its tables.
//
//     control("ping", 7)                              a message between an end and the hub, as bytes
//     packet(session, seq, ack, [["free", 3]])        one between client and device
//     decode(bytes) -> {name, arguments} or {session, seq, ack, items, nbytes}          throws Malformed
//
// What comes out of `decode` has the shape that the tables give for its name. What the numbers refer to is for others to check.

import { MOST_BYTES, MOST_DEPTH, Malformed, decode as unpack, encode } from "./msgpack.js";

export { Malformed };

export const VERSION = 1;
export const PIECE = MOST_BYTES;
export const MESSAGE_LIMIT = PIECE + 2 ** 16;
export const CONTROL_LIMIT = 2 ** 18;

// The most bytes of packets on the way in one direction that were not acknowledged, and how many call for an acknowledgement.
export const WINDOW = 8 * 2 ** 20;
export const ACK_BYTES = 2 ** 19;

const SESSION_BYTES = 16;
const DIGEST_BYTES = 32;
const LINE = 400;
const CONTROL = 0;
const SESSION = 1;

// Items of packets that are never numbered: they are about the channel itself.
const BARE = new Set(["resume", "resumed", "lost", "resend", "cancel"]);

export function control(name, ...args) {
  return message(CONTROL, [name, ...args], CONTROL_LIMIT);
}

export function packet(session, seq, ack, items) {
  return message(SESSION, [session, seq, ack, items], MESSAGE_LIMIT);
}

function message(kind, body, limit) {
  const data = encode(body, kind);
  if (data.length > limit) throw new RangeError(`a message of ${data.length} bytes is over the limit of ${limit}`);
  return data;
}

export function decode(data) {
  const kind = data[0];
  if (kind !== CONTROL && kind !== SESSION) throw new Malformed("a message of unknown kind");
  const limit = kind === CONTROL ? CONTROL_LIMIT : MESSAGE_LIMIT;
  if (data.length > limit) throw new Malformed(`a message of ${data.length} bytes, where ${limit} are allowed`);
  const body = unpack(data.subarray(1));
  if (!Array.isArray(body)) throw new Malformed("a message that is not an array");
  if (kind === SESSION) return unpackPacket(body, data.length);
  checkCall(body, CONTROLS, "message");
  return { name: body[0], arguments: body.slice(1) };
}

function unpackPacket(body, nbytes) {
  if (body.length !== 4) throw new Malformed(`a packet of ${body.length} fields instead of 4`);
  const [session, seq, ack, items] = body;
  if (!isSession(session)) throw new Malformed("a packet without a session of 16 bytes");
  if (!natural(seq) || !natural(ack)) throw new Malformed("a packet whose numbers are not numbers");
  if (!Array.isArray(items)) throw new Malformed("a packet whose items are not an array");
  for (const item of items) {
    if (!Array.isArray(item)) throw new Malformed("an item that is not an array");
    checkCall(item, ITEMS, "item");
    if (BARE.has(item[0]) !== (seq === 0)) throw new Malformed(`item ${item[0]} in a packet ${seq === 0 ? "without" : "with"} a number`);
  }
  if (seq && !items.length) throw new Malformed("a numbered packet without items");
  return { session, seq, ack, items, nbytes };
}

function checkCall(body, known, what) {
  const name = body[0];
  if (typeof name !== "string") throw new Malformed(`a ${what} without a name`);
  const checks = known.get(name);
  if (checks === undefined) throw new Malformed(`no ${what} is called ${JSON.stringify(name.slice(0, 40))}`);
  if (body.length - 1 !== checks.length) throw new Malformed(`${what} ${name} has ${checks.length} arguments, not ${body.length - 1}`);
  for (let i = 0; i < checks.length; ++i) {
    if (!checks[i](body[i + 1])) throw new Malformed(`argument ${i + 1} of ${what} ${name} is not what it must be`);
  }
}

const natural = value => Number.isSafeInteger(value) && value >= 0;
const handle = value => Number.isSafeInteger(value) && value >= 1;
const text = value => typeof value === "string";
const line = value => typeof value === "string" && [...value].length <= LINE;
const bool = value => typeof value === "boolean";
const number = value => typeof value === "number" && value >= 0 && value <= Number.MAX_SAFE_INTEGER;
const bytes = value => value instanceof Uint8Array;
const isSession = value => bytes(value) && value.length === SESSION_BYTES;
const digest = value => bytes(value) && value.length === DIGEST_BYTES;
const piece = value => bytes(value) && value.length <= PIECE;
const size = value => natural(value) && value <= PIECE;
const isMap = value => value !== null && typeof value === "object" && !Array.isArray(value) && !bytes(value);
const orNil = check => value => value === null || check(value);
const oneOf = (...values) => value => values.includes(value);
const array = check => value => Array.isArray(value) && value.every(item => check(item));
const map = check => value => isMap(value) && Object.entries(value).every(([key, item]) => line(key) && check(item));

// A map that has all of the required fields, perhaps optional ones, and no others.
function fields(required, optional = {}) {
  const known = new Map([...Object.entries(required), ...Object.entries(optional)]);
  const names = Object.keys(required);
  return value => isMap(value) && names.every(name => name in value)
    && Object.entries(value).every(([name, item]) => known.has(name) && known.get(name)(item));
}

// [[kernel, [buffer, …]], …]
function batch(value) {
  return Array.isArray(value) && value.every(launch =>
    Array.isArray(launch) && launch.length === 2 && handle(launch[0]) && Array.isArray(launch[1]) && launch[1].every(handle));
}

// Anything that MessagePack holds here, to the depth that is allowed.
function plain(value, depth = 1) {
  if (depth > MOST_DEPTH) return false;
  if (Array.isArray(value)) return value.every(item => plain(item, depth + 1));
  return !isMap(value) || Object.values(value).every(item => plain(item, depth + 1));
}

const INFO = fields({ platform: line, name: line, driver: text, software: bool, limits: map(natural), features: array(line) });
const OFFERS = map(fields({ state: oneOf("ready", "looking", "absent", "retired"), info: orNil(INFO), reason: text }));

const OF_ANY = { version: natural, role: oneOf("client", "device", "watch") };
const OF_DEVICE = { name: line, boot: isSession, kind: oneOf("agent", "browser"), system: line, offers: OFFERS, session: orNil(isSession) };
const HELLOS = new Map([
  ["client", fields({ ...OF_ANY, token: line, session: isSession, device: line, target: line, label: line })],
  ["device", fields({ ...OF_ANY, ...OF_DEVICE }, { token: line, pair: line })],
  ["watch", fields({ ...OF_ANY, token: line })],
]);

// By its role; another version may have other fields.
function hello(value) {
  if (!isMap(value) || !natural(value.version)) return false;
  if (value.version !== VERSION) return plain(value);
  return HELLOS.has(value.role) && HELLOS.get(value.role)(value);
}

const CONTROLS = new Map(Object.entries({
  hello: [hello],
  welcome: [fields({ version: natural, name: line, heartbeat: number }, { token: line })],
  refused: [line, text],
  ping: [natural],
  pong: [natural],
  waiting: [text],
  granted: [fields({ name: line, boot: isSession, info: INFO })],
  away: [text],
  doing: [line],
  end: [],
  lease: [fields({ session: isSession, target: line, label: line })],
  release: [isSession],
  offers: [OFFERS],
  status: [fields({ state: oneOf("idle", "busy", "retired"), launches: natural, received: natural, sent: natural, stored: natural, note: text })],
  devices: [array(value => plain(value))],
  pair: [],
  pairing: [fields({ code: line, url: text, svg: text, seconds: number })],
}));

const ITEMS = new Map(Object.entries({
  open: [handle, fields({ target: line, device: orNil(line), deadline: orNil(number) })],
  allocate: [handle, natural],
  free: [handle],
  write: [handle, natural, piece],
  keep: [digest, natural, natural, piece],
  put: [handle, natural, digest],
  load: [handle, digest],
  unload: [handle],
  launch: [batch],
  define: [handle, batch],
  run: [handle],
  forget: [handle],
  read: [handle, handle, natural, size],
  synchronize: [handle],
  close: [handle],
  ok: [handle, value => plain(value)],
  error: [
    handle, oneOf("device", "memory", "lost", "unavailable", "target", "value", "cancelled", "other"), oneOf("", "driver", "launch"), text,
  ],
  resume: [handle],
  resumed: [],
  lost: [text],
  resend: [],
  cancel: [handle],
}));
