// MessagePack, the part of it that docs/wire.md uses: nil, booleans, whole numbers up to 2^53 - 1, float 64, text, bytes, arrays and maps with
// text as keys. What these mean is for wire.js.
//
//     encode(value) -> Uint8Array        null, boolean, number, string, Uint8Array, array, plain object
//     decode(bytes) -> value             throws Malformed; bytes are views into what was given, maps objects without a prototype
//
// Nothing is allocated on the word of a message: a length is believed only as far as there are bytes for it.

export class Malformed extends Error {}

// Elements of an array, entries of a map, depth of nesting, bytes of a text, raw bytes.
export const MOST_ELEMENTS = 8192;
export const MOST_ENTRIES = 256;
export const MOST_DEPTH = 8;
export const MOST_TEXT = 2 ** 18;
export const MOST_BYTES = 2 ** 20;

const toBytes = new TextEncoder();
const toText = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

// With `first`, a byte before it.
export function encode(value, first = null) {
  const writer = new Writer(1 + sizeAtMost(value));
  if (first !== null) writer.u8(first);
  writer.value(value);
  return writer.bytes.subarray(0, writer.at);
}

function sizeAtMost(value) {
  if (typeof value === "string") return 5 + 3 * value.length;
  if (value instanceof Uint8Array) return 5 + value.length;
  if (Array.isArray(value)) return value.reduce((sum, item) => sum + sizeAtMost(item), 5);
  if (value !== null && typeof value === "object") {
    return Object.entries(value).reduce((sum, [key, item]) => sum + sizeAtMost(key) + sizeAtMost(item), 5);
  }
  return 9;
}

class Writer {
  constructor(size) {
    this.bytes = new Uint8Array(size);
    this.view = new DataView(this.bytes.buffer);
    this.at = 0;
  }

  value(value) {
    if (value === null) this.u8(0xc0);
    else if (typeof value === "boolean") this.u8(value ? 0xc3 : 0xc2);
    else if (typeof value === "number") this.number(value);
    else if (typeof value === "string") this.text(value);
    else if (value instanceof Uint8Array) this.raw(value);
    else if (Array.isArray(value)) {
      this.head(value.length, 0x90, 16, null, 0xdc, 0xdd);
      for (const item of value) this.value(item);
    } else if (typeof value === "object") {
      const entries = Object.entries(value);
      this.head(entries.length, 0x80, 16, null, 0xde, 0xdf);
      for (const [key, item] of entries) {
        this.text(key);
        this.value(item);
      }
    } else throw new TypeError(`a ${typeof value} has no place in a message`);
  }

  number(value) {
    if (!Number.isSafeInteger(value)) {
      this.u8(0xcb);
      this.view.setFloat64(this.at, value);
      this.at += 8;
    } else if (value < 0) {
      if (value >= -32) this.u8(0x100 + value);
      else if (value >= -0x80) this.u8(0xd0, 0x100 + value);
      else if (value >= -0x8000) this.u16(0xd1, value & 0xffff);
      else if (value >= -0x80000000) this.u32(0xd2, value);
      else {
        this.u8(0xd3);
        this.view.setBigInt64(this.at, BigInt(value));
        this.at += 8;
      }
    } else if (value < 0x80) this.u8(value);
    else if (value < 0x100) this.u8(0xcc, value);
    else if (value < 0x10000) this.u16(0xcd, value);
    else if (value < 0x100000000) this.u32(0xce, value);
    else {
      this.u32(0xcf, Math.floor(value / 0x100000000));
      this.view.setUint32(this.at, value >>> 0);
      this.at += 4;
    }
  }

  text(value) {
    const { written } = toBytes.encodeInto(value, this.bytes.subarray(this.at + 5));
    this.head(written, 0xa0, 32, 0xd9, 0xda, 0xdb);
    // The text was put where it lies behind the longest head.
    const gap = this.textGap(written);
    if (gap) this.bytes.copyWithin(this.at, this.at + gap, this.at + gap + written);
    this.at += written;
  }

  textGap(length) {
    return length < 32 ? 4 : length < 0x100 ? 3 : length < 0x10000 ? 2 : 0;
  }

  raw(value) {
    this.head(value.length, null, 0, 0xc4, 0xc5, 0xc6);
    this.bytes.set(value, this.at);
    this.at += value.length;
  }

  // The shortest head for a length: with the length in the type byte, or in 1, 2 or 4 bytes after it.
  head(length, inside, below, one, two, four) {
    if (inside !== null && length < below) this.u8(inside | length);
    else if (one !== null && length < 0x100) this.u8(one, length);
    else if (length < 0x10000) this.u16(two, length);
    else this.u32(four, length);
  }

  u8(...values) {
    for (const value of values) this.bytes[this.at++] = value;
  }

  u16(type, value) {
    this.u8(type, value >>> 8, value & 0xff);
  }

  u32(type, value) {
    this.bytes[this.at] = type;
    this.view.setUint32(this.at + 1, value);
    this.at += 5;
  }
}

export function decode(bytes) {
  const reader = new Reader(bytes);
  const value = reader.value(1);
  if (reader.at !== bytes.length) throw new Malformed(`${bytes.length - reader.at} bytes after the end`);
  return value;
}

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  value(depth) {
    const type = this.bytes[this.take(1)];
    if (type < 0x80) return type;
    if (type >= 0xe0) return type - 0x100;
    if (type < 0x90) return this.map(type & 0x0f, depth);
    if (type < 0xa0) return this.array(type & 0x0f, depth);
    if (type < 0xc0) return this.text(type & 0x1f);
    switch (type) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.raw(this.unsigned(1));
      case 0xc5: return this.raw(this.unsigned(2));
      case 0xc6: return this.raw(this.unsigned(4));
      case 0xca: return this.view.getFloat32(this.take(4));
      case 0xcb: return this.view.getFloat64(this.take(8));
      case 0xcc: return this.unsigned(1);
      case 0xcd: return this.unsigned(2);
      case 0xce: return this.unsigned(4);
      case 0xcf: return this.whole(this.view.getBigUint64(this.take(8)));
      case 0xd0: return this.view.getInt8(this.take(1));
      case 0xd1: return this.view.getInt16(this.take(2));
      case 0xd2: return this.view.getInt32(this.take(4));
      case 0xd3: return this.whole(this.view.getBigInt64(this.take(8)));
      case 0xd9: return this.text(this.unsigned(1));
      case 0xda: return this.text(this.unsigned(2));
      case 0xdb: return this.text(this.unsigned(4));
      case 0xdc: return this.array(this.unsigned(2), depth);
      case 0xdd: return this.array(this.unsigned(4), depth);
      case 0xde: return this.map(this.unsigned(2), depth);
      case 0xdf: return this.map(this.unsigned(4), depth);
      default: throw new Malformed(`type ${type} is not used here`);
    }
  }

  // Moves over `count` bytes that must be there; gives where they start.
  take(count) {
    const start = this.at;
    if (start + count > this.bytes.length) throw new Malformed("it ends too early");
    this.at = start + count;
    return start;
  }

  unsigned(width) {
    const start = this.take(width);
    return width === 1 ? this.bytes[start] : width === 2 ? this.view.getUint16(start) : this.view.getUint32(start);
  }

  whole(value) {
    const number = Number(value);
    if (!Number.isSafeInteger(number)) throw new Malformed("a number beyond 2^53 - 1");
    return number;
  }

  text(length) {
    if (length > MOST_TEXT) throw new Malformed(`a text of ${length} bytes`);
    const start = this.take(length);
    if (length < 16) {
      // Names of items, mostly: the decoder's start-up costs more than these few characters.
      let text = "";
      for (let at = start; at < start + length && this.bytes[at] < 0x80; ++at) text += String.fromCharCode(this.bytes[at]);
      if (text.length === length) return text;
    }
    try {
      return toText.decode(this.bytes.subarray(start, start + length));
    } catch {
      throw new Malformed("a text that is not UTF-8");
    }
  }

  raw(length) {
    if (length > MOST_BYTES) throw new Malformed(`${length} bytes in one`);
    const start = this.take(length);
    return this.bytes.subarray(start, start + length);
  }

  array(length, depth) {
    this.checkCount(length, MOST_ELEMENTS, depth);
    const items = [];
    for (let i = 0; i < length; ++i) items.push(this.value(depth + 1));
    return items;
  }

  map(length, depth) {
    this.checkCount(length, MOST_ENTRIES, depth);
    const found = Object.create(null);
    for (let i = 0; i < length; ++i) {
      const key = this.value(depth + 1);
      if (typeof key !== "string") throw new Malformed("a key that is no text");
      found[key] = this.value(depth + 1);
    }
    return found;
  }

  checkCount(length, most, depth) {
    if (depth > MOST_DEPTH) throw new Malformed(`nested deeper than ${MOST_DEPTH}`);
    if (length > most) throw new Malformed(`${length} elements, where ${most} are allowed`);
  }
}
