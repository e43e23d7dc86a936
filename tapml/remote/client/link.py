"""The client's end of a session: a lease on a device, and packets to and from it over connections that break.

    link = Link(hub, "phone", "webgpu", label="tapml test", patience=60.0)
    link.open()                            waits until the device is ours; as long as it is busy without a limit
    link.send([["free", 3], …])            one packet; waits only while the window is full
    link.wait([7, 8])                      the answers to the requests with these ids
    link.close()

Who waits also receives, in its own thread, which is most of a round trip on one machine. While nobody waits, a thread of the link
receives, so that the hub's pings are answered however long the caller computes, and a connection that breaks meanwhile is made
anew. What may not last for ever is watched by whichever of the two is not receiving:

- No connection, or no device at its end, for `patience` seconds: ConnectionLost. So is a device that comes back without the
  session.
- The device is there, and nothing that was asked was answered or acknowledged for `limit` seconds while somebody waits:
  DeviceLost. Seconds for which it is away do not count, and coming back is no answer.

A device that answers what it was not asked, says what only a client may say, or goes on saying what leads nowhere (doubles,
packets out of order, requests to repeat), is dropped: ConnectionLost with its name. So what the link keeps of a device is one
answer a request at most, and what it only looks at has a bound as well. Nothing of that counts as progress.

After any of these, and after `close`, every call fails in the same way. What the requests mean is for
`tapml.remote.client.client`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tapml.errors import ConnectionLost, DeviceLost, UnavailableError
from tapml.remote.address import HubAddress
from tapml.remote.channel import Channel, Gap
from tapml.remote.client.absent import why_absent
from tapml.remote.client.answers import dropped, told
from tapml.remote.connection import PASSING, Broken, Connection, Refused, Unreachable
from tapml.remote.wire import ANSWERED, SESSION_BYTES, VERSION, WINDOW, Control, Packet, WireError, control, decode, is_session

logger = logging.getLogger("tapml.remote")

Answer = list[Any]

# A hub that never answered in this process is tried for so long only: its address may be wrong. One that did has the patience.
HUB_SECONDS = 3.0
_answered: set[str] = set()
# What an attempt to connect may take; with less patience than that, the shorter time.
CONNECT_SECONDS, SHORT_CONNECT_SECONDS = 10.0, 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
# For how long the hub is waited for when the lease is given back.
LEAVE_SECONDS = 5.0

# How often a clock is looked at while nothing comes, and for how long nobody has waited before the link's own thread receives.
TICK = 0.1
IDLE = 0.25

# How often a waiting client says again what it waits for, where only a number in the text changed.
SAY_AGAIN = 60.0

# Items, and their bytes, that may come one after the other without anything of use among them: the doubles of two windows, after
# a connection was mended twice. And how often packets may be asked for again meanwhile, each time of which a window is sent.
IDLE_ITEMS = 2**14
IDLE_BYTES = 2 * WINDOW + 2**20
IDLE_RESENDS = 1024


@dataclass
class Traffic:
    """Bytes and packets in both directions; packets without a number, which are about the channel only, count as bytes."""

    sent: int = 0
    received: int = 0
    packets_sent: int = 0
    packets_received: int = 0


@dataclass
class _Idle:
    """What came since the last thing of use."""

    items: int = 0
    bytes: int = 0
    repeats: int = 0


class Link:
    """See the module's docstring. `device` may be "any"; `name` is the device that was had, once there is one. For one caller."""

    def __init__(self, hub: HubAddress, device: str, target: str, label: str, patience: float) -> None:
        self.hub = hub
        self.name = device
        self.traffic = Traffic()
        self._wish = {"device": device, "target": target, "label": label}
        self._patience = patience
        self._session = os.urandom(SESSION_BYTES)
        self._channel = Channel(self._session)
        self._connection: Connection | None = None
        self._boot: bytes | None = None
        self._begun = time.monotonic()
        self._look_at = 0.0
        self._ready = self._resuming = False
        self._gone_since = time.monotonic()
        self._gone_because = ""
        self._waiting = False
        self._pause = FIRST_PAUSE
        self._asked: set[int] = set()
        self._answers: dict[int, Answer] = {}
        self._idle = _Idle()
        self._failed: UnavailableError | None = None
        self._closed = threading.Event()
        self._limit: float | None = None
        self._progress = time.monotonic()
        self._spent = 0.0
        self._callers = 0
        self._called = time.monotonic()
        self._said = ("", 0.0)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._reading = threading.Lock()

    def open(self) -> None:
        """Connects and waits for the device. Raises UnavailableError when it, or the hub, is not there for as long as the
        patience lasts, or at once when waiting would be of no use."""
        threading.Thread(target=self._keep, name="tapml.remote", daemon=True).start()
        try:
            self._wait(lambda: self._ready)
        except BaseException:
            self.close()
            raise

    def send(self, items: Sequence[Sequence[Any]], limit: float | None = None) -> None:
        """Packs these requests. They go out now, or when there is a connection again."""
        self._limit = limit
        if self._channel.in_flight >= WINDOW:
            self._wait(lambda: self._channel.in_flight < WINDOW)
        with self._lock:
            self.check()
            self._asked.update(item[1] for item in items if item[0] in ANSWERED)
            data = self._channel.pack(items)
            self.traffic.packets_sent += 1
            if self._ready:
                self._transmit(data)

    def wait(self, ids: Sequence[int], limit: float | None = None) -> list[Answer]:
        """The answers, in this order: ["ok", id, value] or ["error", id, kind, stage, text]."""
        self._limit = limit
        self._wait(lambda: all(number in self._answers for number in ids))
        with self._lock:
            return [self._answers.pop(number) for number in ids]

    def doing(self, text: str) -> None:
        """What the client is at, for people who look at the hub's page."""
        with self._lock, contextlib.suppress(Broken):
            if self._ready and self._connection is not None:
                self._connection.send(control("doing", text[:200]))

    def give_up(self, last: int) -> None:
        """In the middle of a call: requests up to `last` are cancelled, and the lease ends."""
        self._leave([self._channel.bare([["cancel", last]])] if self._ready else [])

    def close(self, last: Sequence[Sequence[Any]] = ()) -> None:
        """Ends the lease after these requests, if there is a connection to say so. May be called twice."""
        self._leave([self._channel.pack(last)] if last and self._ready and self._channel.in_flight < WINDOW else [])

    def _leave(self, messages: list[bytes]) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        connection = self._connection
        if connection is not None:
            connection.leave([*messages, control("end")], LEAVE_SECONDS)
        with self._lock:
            self._connection = None
            self._changed.notify_all()

    # Waiting and receiving.

    def _wait(self, done: Callable[[], bool]) -> None:
        """Until `done`, which is asked under the lock. Receives as long as nobody else does."""
        self._progress, self._spent = time.monotonic(), 0.0
        self._callers += 1
        try:
            while True:
                with self._lock:
                    self.check()
                    if done():
                        return
                if self._reading.acquire(blocking=False):
                    try:
                        self._receive()
                    finally:
                        self._reading.release()
                else:
                    with self._lock:
                        if not done():
                            self._changed.wait(TICK)
                    self._watch()
        finally:
            self._callers -= 1
            self._called = time.monotonic()

    def _keep(self) -> None:
        """The link's own thread."""
        while not self._closed.wait(TICK):
            self._watch()
            if self._callers or time.monotonic() - self._called < IDLE or not self._reading.acquire(blocking=False):
                continue
            try:
                while not self._callers and not self._closed.is_set() and self._failed is None:
                    self._acknowledge()
                    self._receive()
            finally:
                self._reading.release()
                with self._lock:
                    self._changed.notify_all()

    def _receive(self) -> None:
        """One message, or one attempt to connect. The caller holds the right to receive."""
        connection = self._connection
        if connection is None:
            self._reconnect()
            return
        try:
            data = connection.receive()
            message = decode(data)
        except Broken as error:
            self._broke(connection, str(error))
        except WireError as error:
            if self._boot is not None and is_session(data):  # the hub passes on what a device says as it is
                self._fail(dropped(self.name, f"it sent something that is not a message ({error})"))
            else:
                self._broke(connection, f"something arrived that is not a message ({error})")
        else:
            with self._lock:
                self.traffic.received += len(data)
                if isinstance(message, Packet):
                    self._take(message)
                else:
                    self._hear(message)
                self._changed.notify_all()

    def _reconnect(self) -> None:
        """Connects, or pauses after an attempt that failed."""
        try:
            timeout = CONNECT_SECONDS if self._patience >= CONNECT_SECONDS else SHORT_CONNECT_SECONDS
            hello = {"version": VERSION, "role": "client", "session": self._session, **self._wish}
            connection = Connection.open(self.hub, hello, timeout)
        except Unreachable as error:
            self._gone_because = str(error)
        except Refused as error:
            if error.code not in PASSING:
                self._fail(error)
                return
            self._gone_because = str(error)
        except UnavailableError as error:
            self._fail(error)
            return
        else:
            _answered.add(self.hub.redacted)
            with self._lock:
                if self._closed.is_set():
                    connection.leave([control("end")], LEAVE_SECONDS)
                    return
                self._connection = connection
                self._pause = FIRST_PAUSE
                self._gone_because = ""
            return
        self._watch()
        if self._failed is None:
            self._closed.wait(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _broke(self, connection: Connection, why: str) -> None:
        connection.close()
        with self._lock:
            if self._connection is connection:
                self._connection = None
                self._begun = time.monotonic()
                self._away(f"The connection to the hub at {self.hub.redacted} broke: {why}.")

    def _away(self, why: str) -> None:
        self._gone_because, self._waiting = why, False
        if self._ready:
            self._ready = False
            self._gone_since = time.monotonic()
            self._spent = self._gone_since - self._progress
            if self._failed is None and not self._closed.is_set():
                logger.warning("%s Trying again for %.0f s.", why, self._patience)

    # What comes.

    def _hear(self, message: Control) -> None:
        """A message of the hub."""
        if message.name == "waiting":
            self._away(f"The hub has no device for this client: {told(message.arguments[0])}.")
            self._waiting = True
            if self._boot is None:
                self._say_waiting(message.arguments[0])
        elif message.name == "away":
            self._away(f"Device {self.name} is away: {told(message.arguments[0])}.")
        elif message.name == "granted":
            self._granted(message.arguments[0])
        elif message.name == "refused":
            self._fail(Refused(*message.arguments))

    def _granted(self, device: dict[str, Any]) -> None:
        begun = self._channel.taken or self._channel.first > 1
        if self._boot is not None and begun and device["boot"] != self._boot:
            self._fail(ConnectionLost(
                f"Device {self.name} was restarted, and its memory is lost.", restarted=True
            ))
            return
        if self._said[0]:
            logger.warning("%s is ours", device["name"])
            self._said = ("", 0.0)
        if not self._ready:
            self._gone_since, self._waiting = time.monotonic(), False
        self._boot = device["boot"]
        self.name = self._wish["device"] = device["name"]
        self._resuming = True
        self._transmit(self._channel.bare([["resume", self._channel.first]]))

    def _take(self, packet: Packet) -> None:
        """A packet of the device."""
        if packet.session != self._session:
            self._is_idle(packet, 0)
            return
        first = self._channel.first
        try:
            items = self._channel.take(packet)
        except Gap:
            if not self._is_idle(packet, 1):
                self._transmit(self._channel.bare([["resend"]]))
            return
        except WireError as error:
            self._fail(dropped(self.name, f"its session is out of step: {error}"))
            return
        if packet.seq:
            self.traffic.packets_received += 1
        moved = self._channel.first > first
        for item in items:
            if item[0] in ("ok", "error"):
                if item[1] not in self._asked:
                    self._fail(dropped(self.name, f"it answered request {item[1]}, which it was not asked"))
                    return
                self._asked.remove(item[1])
                self._answers[item[1]] = item
                moved = True
            elif item[0] == "resumed":
                self._resumed()
            elif item[0] == "lost":
                self._fail(ConnectionLost(f"Device {self.name} no longer holds the session: {told(item[1])}"))
                return
            elif item[0] != "resend":
                self._fail(dropped(self.name, f"it said {item[0]!r}, which only a client may send"))
                return
        if moved:
            self._progress = time.monotonic()
            self._idle = _Idle()
        repeats = sum(item[0] == "resend" for item in items)
        if not moved and self._is_idle(packet, repeats):
            return
        if repeats and self._ready:
            self._send_again()
        self._channel.done(packet)
        due = self._channel.due(idle=False)
        if due is not None:
            self._transmit(due)

    def _is_idle(self, packet: Packet, repeats: int) -> bool:
        """Counts a packet that leads nowhere. True when there were too many of them, and the device was dropped."""
        idle = self._idle
        idle.items += max(1, len(packet.items))
        idle.bytes += packet.nbytes
        idle.repeats += repeats
        if idle.items <= IDLE_ITEMS and idle.bytes <= IDLE_BYTES and idle.repeats <= IDLE_RESENDS:
            return False
        self._fail(dropped(
            self.name, f"it sent {idle.items:,} things of {idle.bytes:,} bytes that answer no request, and asked "
            f"{idle.repeats:,} times for what it was sent",
        ))  # fmt: skip
        return True

    def _resumed(self) -> None:
        if not self._resuming:
            return
        if not self._ready:
            self._progress = time.monotonic() - self._spent
            if self._channel.first > 1:
                logger.warning("device %s is back", self.name)
        self._ready, self._resuming = True, False
        self._send_again()

    def _send_again(self) -> None:
        for data in self._channel.unacknowledged():
            self._transmit(data)

    def _acknowledge(self) -> None:
        with self._lock:
            due = self._channel.due(idle=True) if self._ready else None
            if due is not None:
                self._transmit(due)

    def _transmit(self, data: bytes) -> None:
        """A packet to the device; the channel keeps what must not be lost."""
        connection = self._connection
        if connection is None:
            return
        try:
            connection.send(data)
            self.traffic.sent += len(data)
        except Broken as error:
            self._broke(connection, str(error))

    # What ends it.

    def check(self) -> None:
        """Raises what ended it, if something did."""
        if self._failed is not None:
            raise self._failed.with_traceback(None)
        if self._closed.is_set():
            raise ValueError("the device is closed")

    def _fail(self, error: UnavailableError) -> None:
        """Every call from now on fails with this."""
        with self._lock:
            self._failed = self._failed or error
            self._ready = False
            self._changed.notify_all()
        self.close()

    def _watch(self) -> None:
        """Whether something has lasted too long."""
        now = time.monotonic()
        with self._lock:
            if self._failed is not None or self._closed.is_set():
                return
            opened = self._boot is not None
            if opened and not self._ready and now - self._gone_since > self._patience:
                self._fail(ConnectionLost(
                    f"{self._gone_because} It did not come back within {self._patience:.0f} s. Check that tapml hub runs and "
                    f"that {self.name} is connected to it (tapml devices URL), then run the same command again.",
                    final=not self._waiting,  # a device that serves somebody else by now will be free again
                ))
            if self._ready and self._callers and self._limit is not None and now - self._progress > self._limit:
                self._fail(DeviceLost(
                    f"Device {self.name} is connected and did not answer for {self._limit:.0f} s. It was given up."
                ))
        if not opened:
            self._watch_for_device(now)

    def _watch_for_device(self, now: float) -> None:
        """Before there is a device: whether it is worth waiting for."""
        if self._connection is None:
            seconds = self._patience if self.hub.redacted in _answered else min(HUB_SECONDS, self._patience)
            if self._gone_because and now - self._begun > seconds:
                self._fail(UnavailableError(self._gone_because))
            return
        if now < self._look_at:
            return
        self._look_at = now + self._patience / 10
        try:
            absent = why_absent(self.hub, self._wish["device"], self._wish["target"])
        except UnavailableError:
            return  # the hub is gone, which its connection tells too
        with self._lock:
            if not absent.reason:
                self._begun = now
            elif self._boot is None and (absent.final or now - self._begun > self._patience):
                self._fail(UnavailableError(absent.reason))

    # Words.

    def _say_waiting(self, text: str) -> None:
        before, when = self._said
        plain = re.sub(r"\d+", "", text)
        if plain != before or time.monotonic() - when > SAY_AGAIN:
            self._said = (plain, time.monotonic())
            logger.warning("waiting for %s at %s: %s", self._wish["device"], self.hub.redacted, text)
