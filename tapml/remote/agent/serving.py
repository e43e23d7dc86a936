"""One session as a device serves it: packets come in, a thread of its own carries the requests out, answers go out in order.

    serving = Serving(name, Session(child.open, store), child.kill, send)
    serving.take(packet)          from the thread that receives; returns at once
    serving.end()                 the lease is over: all is freed, by force if a request is still under way

It outlives connections: `send` may drop what it is given, since the channel keeps a packet until it is acknowledged and sends
it again when the client resumes. `cancel` is heeded while a request is carried out; one that has not ended `CANCEL_SECONDS`
later is ended with the device. No request runs on the thread that receives, so heartbeats are answered whatever a kernel does.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from tapml.remote.agent.session import Session
from tapml.remote.channel import Channel, Gap
from tapml.remote.wire import ANSWERED, MESSAGE_LIMIT, WINDOW, Packet, WireError

CANCEL_SECONDS = 2.0
# How long a session waits for the one before it to be freed.
FREED_SECONDS = 10.0

# A client has at most a window, and the packet that fills it, on the way; what is more is not taken.
MOST_QUEUED = WINDOW + 2 * MESSAGE_LIMIT
# A client that waits hears this often that something was done, where there is nothing to answer.
SIGN_SECONDS = 1.0
# Answers that are together larger than this are not held back for the next ones.
ENOUGH = 2**16

Item = Sequence[Any]


class Serving:
    """`kill` ends the session's device from any thread; `send` hands a message to the connection of the moment, or drops it.
    `before` is the session that had the device before: it is freed first."""

    def __init__(
        self, name: bytes, session: Session, kill: Callable[[], None], send: Callable[[bytes], None],
        before: Serving | None = None,
    ) -> None:
        self.name = name
        self._session = session
        self._kill = kill
        self._send = send
        self._before = before
        self._channel = Channel(name)
        self._lock = threading.Lock()
        self._acknowledged = threading.Condition(self._lock)
        self._queue: SimpleQueue[tuple[Packet, list[list[Any]]] | None] = SimpleQueue()
        self._queued = 0
        self._out: deque[bytes] = deque()
        self._flushing = False
        self._ended = False
        self._seen = 0
        self._cancelled_to = 0
        self._begun = 0
        self._under_way: tuple[int, float] | None = None
        self._spoke = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="session", daemon=True)
        self._thread.start()

    @property
    def launches(self) -> int:
        return self._session.launches

    @property
    def busy_seconds(self) -> float:
        """How long the request that is under way has taken so far."""
        under_way = self._under_way
        return 0.0 if under_way is None else time.monotonic() - under_way[1]

    @property
    def ended(self) -> bool:
        """Nothing is carried out any more."""
        return self._ended

    def take(self, packet: Packet) -> None:
        """A packet of this session."""
        items: list[list[Any]] = []
        reply = b""
        if self._ended:  # that it did may not have been heard
            self._send(self._channel.bare([["lost", "The session has ended."]]))
            return
        with self._lock:
            if packet.seq and self._queued + packet.nbytes > MOST_QUEUED:
                return  # a client that keeps to the window does not come here
            try:
                items = self._channel.take(packet)
            except Gap:
                reply = self._channel.bare([["resend"]])
            except WireError as error:
                reply = self._channel.bare([["lost", f"The session cannot continue: {error}."]])
                self._end()
            self._acknowledged.notify_all()
            if packet.seq and items:
                self._queued += packet.nbytes
                self._queue.put((packet, items))
        if reply:
            self._send(reply)
        if not packet.seq:
            for name, *arguments in items:
                if name == "cancel":
                    self._cancel(arguments[0])
                elif name in ("resume", "resend"):
                    self._send_again([["resumed"]] if name == "resume" else [])

    def end(self) -> None:
        """Frees everything, soon. May be called twice."""
        with self._lock:
            self._end()

    def freed(self, seconds: float) -> bool:
        """Waits until everything is freed."""
        if self._thread is not threading.current_thread():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._queue.put(None)
        self._acknowledged.notify_all()
        if self._under_way is not None:
            self._session.ended_because = "The session was ended while a request was under way."
            self._kill()

    def _work(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            before.freed(FREED_SECONDS)
        try:
            while (entry := self._queue.get()) is not None and not self._ended:
                self._carry_out(*entry)
        except Exception:
            traceback.print_exc()
            with self._lock:
                self._out.append(self._channel.bare([["lost", "The agent made a mistake; it says more where it runs."]]))
                self._end()
            self._flush()
        finally:
            try:
                self._session.end()
            except Exception as error:
                print(f"tapml: a session was not freed cleanly: {error}", file=sys.stderr)

    def _carry_out(self, packet: Packet, items: list[list[Any]]) -> None:
        answers: list[list[Any]] = []
        size = 0
        for item in items:
            if size > ENOUGH:
                self._answer(answers)
                answers, size = [], 0
            answer = self._one(item)
            if self._ended:
                return
            if answer is None:
                continue
            nbytes = _bytes_of(answer)
            if answers and size + nbytes > ENOUGH:
                self._answer(answers)
                answers, size = [], 0
            answers.append(answer)
            size += nbytes
        with self._lock:
            self._channel.done(packet)
            self._queued -= packet.nbytes
            if not answers:
                now = time.monotonic()
                due = self._channel.due(self._queue.empty() or now - self._spoke > SIGN_SECONDS)
                if due is not None:
                    self._out.append(due)
                    self._spoke = now
        if answers:
            self._answer(answers)
        else:
            self._flush()

    def _one(self, item: Item) -> list[Any] | None:
        """Carries out one request, unless it is cancelled."""
        if item[0] in ANSWERED:
            self._seen = number = item[1]
        else:
            number = self._seen + 1  # it goes with the next request that is answered
        with self._lock:
            if self._ended:
                return None
            cancelled = number <= self._cancelled_to
            if not cancelled:
                self._begun += 1
                self._under_way = (number, time.monotonic())
        if cancelled:
            return self._session.drop(item)
        try:
            return self._session.carry_out(item)
        finally:
            self._under_way = None

    def _answer(self, answers: list[list[Any]]) -> None:
        with self._lock:
            while self._channel.in_flight >= WINDOW and not self._ended:
                self._acknowledged.wait()
            if self._ended:
                return
            self._out.append(self._channel.pack(answers))
        self._flush()

    def _cancel(self, number: int) -> None:
        with self._lock:
            self._cancelled_to = max(self._cancelled_to, number)
            under_way = self._under_way
            if under_way is None or under_way[0] > number:
                return
            begun = self._begun
        timer = threading.Timer(CANCEL_SECONDS, self._end_device, (begun,))
        timer.daemon = True
        timer.start()

    def _end_device(self, begun: int) -> None:
        with self._lock:
            if self._begun == begun and self._under_way is not None:
                self._session.ended_because = (
                    f"The device was ended: a request was cancelled and did not end within {CANCEL_SECONDS:g} s."
                )
                self._kill()

    def _send_again(self, said: list[list[Any]]) -> None:
        """All that is not acknowledged, after a packet that says this. By a thread of its own: the one that receives must not
        wait until megabytes have left."""
        with self._lock:
            self._out.clear()
            self._out.append(self._channel.bare(said))
            self._out.extend(self._channel.unacknowledged())
        threading.Thread(target=self._flush, name="again", daemon=True).start()

    def _flush(self) -> None:
        """Sends what waits, in order: the thread that finds nobody at it does it for all."""
        with self._lock:
            if self._flushing:
                return
            self._flushing = True
        while True:
            with self._lock:
                if not self._out:
                    self._flushing = False
                    return
                data = self._out.popleft()
            try:
                self._send(data)
            except BaseException:
                self._flushing = False
                raise


def _bytes_of(answer: list[Any]) -> int:
    """About how large an answer is when it is packed."""
    value = answer[-1]
    return 64 + (len(value) * (1 if isinstance(value, bytes) else 4) if isinstance(value, bytes | str) else 0)
