"""The device side of a machine: `tapml agent` connects out to a hub and runs kernels for the client that the hub gives it to.

    agent = Agent(HubAddress.parse(url), "bench", parse_offered([]), store_bytes=2**31)
    agent.run()                  until `stop`, or until the hub refuses it: raises what it said
    agent.stop()                 from any thread, or a signal handler

One thread receives, so heartbeats are answered whatever a kernel does; the session's own thread (`serving.py`) carries requests
out, in a child process that may crash or hang; a third tries the platforms (`offers.py`); a fourth tells the hub how it goes. A
connection that breaks is made anew for ever; the session, with all that is on the device, waits for its client. It ends when the
hub releases it, or when the hub itself has been away for `AWAY_SECONDS`. What sessions need is imported when the hub knows the
agent, so that it is listed sooner.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from tapml.errors import UnavailableError, UsageError
from tapml.remote.address import HubAddress
from tapml.remote.agent.offers import Offered, Offers
from tapml.remote.agent.store import Store, default_budget
from tapml.remote.channel import Channel
from tapml.remote.connection import PASSING, Broken, Connection, Refused, Unreachable
from tapml.remote.wire import VERSION, Control, Packet, WireError, control, decode

if TYPE_CHECKING:
    from tapml.devices.sandbox import Sandbox
    from tapml.remote.agent.serving import Serving

AWAY_SECONDS = 120.0
CONNECT_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
STATUS_SECONDS = 1.0
# A request that takes longer than this is mentioned in the status.
LONG_SECONDS = 5.0


class Agent:
    """See the module's docstring. `memory` limits what one session may allocate, `store_bytes` what is remembered, in bytes.
    `confined`: the process of a session has as few rights as this system takes from it."""

    def __init__(
        self, address: HubAddress, name: str, offered: Offered, memory: int | None = None, store_bytes: int | None = None,
        confined: bool = True,
    ) -> None:
        self.name = name
        self.sessions = 0
        self.received = 0
        self.sent = 0
        self._address = address
        self._boot = os.urandom(16)
        self._memory = memory
        self._store = Store(default_budget() if store_bytes is None else store_bytes)
        self._confined = confined
        self._offers = Offers(offered, memory, self._offers_changed, self._sandbox)
        self._launches_before = 0
        self._stopping = threading.Event()
        self._listed = threading.Event()
        self._failure: Exception | None = None
        self._connection: Connection | None = None
        self._away_since = time.monotonic()
        self._lock = threading.Lock()
        self._serving: Serving | None = None
        self._last: Serving | None = None
        self._lease: tuple[bytes, str] | None = None
        self._news = threading.Event()
        self._preparing = threading.Lock()

    def run(self) -> None:
        """Serves until it is stopped. When the hub refuses it, raises UsageError for its version, UnavailableError otherwise."""
        threads = [
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__.strip("_"), daemon=True)
            for work in (self._stay_connected, self._tell_status, self._look)
        ]
        for thread in threads:
            thread.start()
        while not self._stopping.wait(60.0):
            continue
        self._leave()
        for thread in threads[:2]:
            thread.join(1.0)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """The session ends, and `run` returns."""
        self._stopping.set()

    @property
    def launches(self) -> int:
        """Kernels launched since the start."""
        serving = self._serving
        return self._launches_before + (serving.launches if serving is not None else 0)

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            self._failure = self._failure or error
            self.stop()

    def _stay_connected(self) -> None:
        pause, met, said = FIRST_PAUSE, False, ""
        while not self._stopping.is_set():
            offers = self._offers.listed()
            try:
                connection = Connection.open(self._address, self._hello(offers), CONNECT_SECONDS)
            except UnavailableError as error:
                if not isinstance(error, Unreachable) and not (isinstance(error, Refused) and error.code in PASSING):
                    self._give_up(error)
                if str(error) != said:
                    said = str(error)
                    say(f"{said} Trying again until it answers.")
                self._stopping.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause, said = FIRST_PAUSE, ""
            self._connected(connection, offers, met)
            met = True
            why = self._receive(connection)
            connection.close()
            self._away_since = time.monotonic()
            self._connection = None
            if not self._stopping.is_set():
                say(f"The connection to the hub is lost: {why}. Connecting again.")

    def _hello(self, offers: dict[str, Any]) -> dict[str, Any]:
        serving = self._serving
        return {
            "version": VERSION, "role": "device", "name": self.name, "boot": self._boot, "kind": "agent",
            "system": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} processors"[:400],
            "offers": offers, "session": None if serving is None or serving.ended else serving.name,
        }

    def _connected(self, connection: Connection, offers: dict[str, Any], again: bool) -> None:
        token = connection.welcome.get("token")
        if token:
            self._address = dataclasses.replace(self._address, token=token, pair="")
        self.name = connection.welcome["name"]
        if self._serving is None:
            self._lease = None  # the hub says it again if there is one
        self._connection = connection
        self._listed.set()
        say(f"{'Back' if again else 'Connected'} at {self._address.redacted} as {_shown(self.name)}.")
        if offers != self._offers.listed():
            self._offers_changed()
        self._news.set()

    def _receive(self, connection: Connection) -> str:
        """Takes what comes until the connection is gone; says why it is."""
        try:
            while True:
                data = connection.receive()
                self.received += len(data)
                message = decode(data)
                if isinstance(message, Packet):
                    self._packet(message)
                else:
                    self._control(message)
        except Broken as error:
            return str(error)
        except WireError as error:
            return f"the hub sent something that is not understood here ({error})"

    def _give_up(self, error: UnavailableError) -> NoReturn:
        if isinstance(error, Refused) and error.code == "version":
            raise UsageError(f"The hub refuses this agent: {error}") from error
        raise error

    def _control(self, message: Control) -> None:
        if message.name == "lease":
            lease = message.arguments[0]
            user = f"{_shown(lease['label'])} on {_shown(lease['target'])}"
            if self._lease is None or self._lease[0] != lease["session"]:
                say(f"In use: {user}")
            self._lease = (lease["session"], user)
            self._free(but=lease["session"])
        elif message.name == "release":
            released = message.arguments[0]
            if self._lease is not None and self._lease[0] == released:
                self._lease = None
                say("Free again.")
            if self._serving is not None and self._serving.name == released:
                self._free()
        elif message.name == "refused":
            raise Broken(message.arguments[1])
        self._news.set()

    def _packet(self, packet: Packet) -> None:
        serving = self._serving
        if serving is None or serving.name != packet.session:
            resume = next((item for item in packet.items if item[0] == "resume"), None)
            if resume is None:
                return  # of a session that is over
            if resume[1] != 1 or packet.ack:
                text = "This agent does not hold the session any more: it was restarted, or released it."
                self._send(Channel(packet.session).bare([["lost", text]]))
                return
            serving = self._begin(packet.session)
            if serving is None:
                return
        serving.take(packet)

    def _begin(self, name: bytes) -> Serving | None:
        """A new session, in place of any other; None when the agent is about to leave."""
        if not self._prepare():
            return None
        from tapml.remote.agent.opening import Opening
        from tapml.remote.agent.serving import Serving
        from tapml.remote.agent.session import Session

        self._free()
        opening = Opening(self._offers, self._sandbox)
        session = Session(opening.open, self._store, self._memory)
        with self._lock:
            self._serving = Serving(name, session, opening.kill, self._send, self._last)
            self.sessions += 1
            return self._serving

    def _sandbox(self, platform: str) -> Sandbox | None:
        """What the process is confined by in which a platform's kernels run. Raises UnavailableError."""
        if not self._confined:
            return None
        from tapml.remote.agent.opening import sandbox_for

        return sandbox_for(platform)

    def _free(self, but: bytes | None = None) -> Serving | None:
        """Ends the session, unless it is this one."""
        with self._lock:
            serving = self._serving
            if serving is None or serving.name == but:
                return None
            self._serving, self._last = None, serving
            serving.end()
            self._launches_before += serving.launches
        self._news.set()
        return serving

    def _send(self, data: bytes) -> None:
        """To the connection of the moment; without one it is dropped, since the session's channel keeps what matters."""
        connection = self._connection
        if connection is None:
            return
        try:
            connection.send(data)
            self.sent += len(data)
        except Broken:
            connection.close()  # `receive` notices, and connects anew

    def _prepare(self) -> bool:
        """Imports what sessions need, unless the agent is about to leave: a process must not end in the middle of that."""
        with self._preparing:
            if self._stopping.is_set():
                return False
            import tapml.devices.trial
            import tapml.remote.agent.opening
            import tapml.remote.agent.serving  # noqa: F401
            return True

    def _look(self) -> None:
        self._listed.wait(2.0)
        if not self._prepare():
            return
        for name, offer in self._offers.look():
            say(f"{name}: " + _shown(offer["info"]["name"] if offer["info"] else f"absent. {offer['reason']}"))
        if not any(offer["info"] for offer in self._offers.listed().values()):
            say("Nothing here can run kernels. See what tapml doctor says here.")

    def _offers_changed(self) -> None:
        self._send(control("offers", self._offers.listed()))

    def _tell_status(self) -> None:
        """Once a second where something changed, and when a lease comes or goes."""
        told: dict[str, Any] = {}
        while not self._stopping.is_set():
            self._news.wait(STATUS_SECONDS)
            self._news.clear()
            if self._connection is None:
                told = {}
                if self._serving is not None and time.monotonic() - self._away_since > AWAY_SECONDS:
                    say(f"The hub has been away for {AWAY_SECONDS:g} s: its client's session is given up.")
                    self._free()
                    self._lease = None
            else:
                status = self._status()
                news = status if status["state"] == "busy" else {**status, "received": 0, "sent": 0}
                if news != told:
                    self._send(control("status", status))
                    told = news

    def _status(self) -> dict[str, Any]:
        serving, lease = self._serving, self._lease
        note = lease[1] if lease is not None else ""
        if serving is not None and serving.busy_seconds > LONG_SECONDS:
            note = f"{note}, one request for {serving.busy_seconds:.0f} s".lstrip(", ")
        return {
            "state": "idle" if serving is None and lease is None else "busy", "launches": self.launches,
            "received": self.received, "sent": self.sent, "stored": self._store.used, "note": note,
        }

    def _leave(self) -> None:
        """Says goodbye, if that is possible at once, and frees all."""
        with self._preparing:
            connection, serving = self._connection, self._free()
        if connection is not None:
            status = control("status", {**self._status(), "state": "retired", "note": "The agent was stopped."})
            goodbye = threading.Thread(target=self._send, args=(status,), daemon=True)
            goodbye.start()
            goodbye.join(1.0)
            connection.close()
        self._news.set()
        if serving is not None:
            serving.freed(2.0)


def say(text: str) -> None:
    """One line for whoever started the agent."""
    with contextlib.suppress(OSError, ValueError):  # a terminal that was closed
        print(f"tapml agent: {text}", file=sys.stderr, flush=True)


def _shown(text: str) -> str:
    """What came from elsewhere, fit for a terminal: one line, no control characters."""
    return "".join(c if c.isprintable() else " " for c in text)
