// One end of a session: packets in order, each once, over connections that break. The rules are in docs/wire.md, "Sessions"; the Python side is
// tapml/remote/channel.py, and this is the same machine.
//
//     const channel = new Channel(session)
//     send(channel.pack([["ok", 4, null]]))               numbered, and kept until the other end has carried it out
//     for (const item of channel.take(packet)) …          what came, in order; nothing for a double
//     channel.done(packet)                                carried out: may be acknowledged
//     channel.unacknowledged().forEach(send)              after the connection was made anew
//
// No I/O, no clock: the owner sends, and waits while `inFlight` is at the window. A packet that was taken and is not done is not
// acknowledged, and if it comes again it is a double.

import { ACK_BYTES, Malformed, packet } from "./wire.js";

// A packet came whose predecessor is missing: ask for it with `bare([["resend"]])`.
export class Gap extends Error {}

export class Channel {
  #next = 1;
  #kept = [];
  #done = 0;
  #told = 0;
  #untoldBytes = 0;

  constructor(session) {
    this.session = session;
    this.taken = 0;
    this.inFlight = 0;
  }

  // The lowest number that can still be sent again; the next new one when all is acknowledged.
  get first() {
    return this.#kept.length ? this.#kept[0].seq : this.#next;
  }

  // The next packet, ready to be sent; it is kept until it is acknowledged.
  pack(items) {
    const data = packet(this.session, this.#next, this.#acknowledge(), items);
    this.#kept.push({ seq: this.#next++, data });
    this.inFlight += data.length;
    return data;
  }

  // A packet without a number: an acknowledgement, with what the channel itself has to say.
  bare(items = []) {
    return packet(this.session, 0, this.#acknowledge(), items);
  }

  // Items to carry out, in order: none for a double. Throws Gap when a packet before this one is missing, Malformed when something is
  // acknowledged that was never sent.
  take(packet) {
    if (packet.ack >= this.#next) throw new Malformed(`packet ${packet.ack} is acknowledged, and ${this.#next - 1} were sent`);
    let known = 0;
    while (known < this.#kept.length && this.#kept[known].seq <= packet.ack) this.inFlight -= this.#kept[known++].data.length;
    if (known) this.#kept.splice(0, known);
    if (packet.seq === 0) return packet.items;
    if (packet.seq > this.taken + 1) throw new Gap();
    if (packet.seq <= this.taken) return [];
    this.taken = packet.seq;
    return packet.items;
  }

  // The items of this packet are carried out.
  done(packet) {
    if (packet.seq === this.#done + 1) {
      this.#done = packet.seq;
      this.#untoldBytes += packet.nbytes;
    }
  }

  // An acknowledgement that should be sent now: the other end waits for it, or has nothing to wait for.
  due(idle) {
    return this.#done > this.#told && (idle || this.#untoldBytes >= ACK_BYTES) ? this.bare() : null;
  }

  // What has to be sent again on a new connection, in order.
  unacknowledged() {
    return this.#kept.map(kept => kept.data);
  }

  #acknowledge() {
    this.#told = this.#done;
    this.#untoldBytes = 0;
    return this.#done;
  }
}
