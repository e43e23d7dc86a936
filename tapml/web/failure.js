// Why a request failed, as docs/wire.md answers it: `kind` "device", "memory", "lost", "value", …, and `stage` "driver" or "launch" for
// "device". It also stands in for a handle that could not be made.

const MOST_TEXT = 2 ** 16;

export class Failure extends Error {
  constructor(kind, message, stage = "") {
    super(message.length > MOST_TEXT ? `${message.slice(0, MOST_TEXT)} […]` : message);
    this.kind = kind;
    this.stage = stage;
  }

  // What is none of ours is a bug or a browser's surprise, and travels with its stack.
  static of(error) {
    if (error instanceof Failure) return error;
    return new Failure("other", error instanceof Error ? error.stack || String(error) : String(error));
  }
}

// A mistake of the client.
export function mistake(message) {
  return new Failure("value", message);
}
