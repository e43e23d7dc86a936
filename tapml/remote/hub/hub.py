"""The hub: clients, devices and watchers connect to it; it says which device belongs to which client, and passes their packets
on.

    hub = Hub(tokens, names, Pages.load(names), certificate=None, log=print)
    await hub.start("127.0.0.1", 8765)
    hub.url                                  with the token: for clients, agents and the page
    hub.pairing()                            a code, and an address with it, for a phone
    await hub.close()

It runs in one event loop, and only here do the pieces meet: `door` and `gate` say which connections there are, `tokens` who may
come in and `room` how many, `leases` who gets what, `pages` and `cookies` what a browser is shown and known by, `hello` what an
end said of itself, `listing` what watchers see, `peer` how a connection is written to, `logbook` what is said about all that.
The hub keeps nothing that the ends could not bring again: when it is killed and started anew, all of them connect again and go
on. What a packet between client and device says is not looked at. An end that reads slowly holds up only the one it talks to.
"""

from __future__ import annotations

import asyncio
import functools
import http
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tapml.remote.address import HubAddress
from tapml.remote.hub.certificate import Certificate
from tapml.remote.hub.cookies import Cookies
from tapml.remote.hub.door import Door, descriptors
from tapml.remote.hub.gate import MOST_LEAVING, MOST_NEW, MOST_NEW_OF_ONE, Gate
from tapml.remote.hub.hello import (
    ClientHello,
    DeviceHello,
    Hello,
    Refusal,
    line,
    parse_control,
    parse_hello,
    parse_offers,
)
from tapml.remote.hub.hosting import Names, listen
from tapml.remote.hub.leases import Joining, Leases, Said
from tapml.remote.hub.listing import Shown, listing, pack
from tapml.remote.hub.logbook import Logbook
from tapml.remote.hub.pages import Pages, as_device, same_origin
from tapml.remote.hub.peer import READ_QUEUE, WRITE_LIMIT, Peer
from tapml.remote.hub.qr import qr_svg
from tapml.remote.hub.room import MOST, Room
from tapml.remote.hub.tokens import PairingRefused, Tokens
from tapml.remote.wire import MESSAGE_LIMIT, VERSION, is_session

HELLO_SECONDS = 10.0
CLOSE_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0
SILENT_HEARTBEATS = 3
TICK_SECONDS = 1.0
LISTING_SECONDS = 0.5

# For so many an end that has more to read than it has taken so far may take none of it.
STUCK_HEARTBEATS = 12

# How long a device has to show that it is still there when another comes with its name.
PROOF_SECONDS = 2.0


@dataclass(frozen=True)
class PairingOffer:
    """A pairing code and the address with it, good for so many seconds."""

    code: str
    url: str
    seconds: float


class Hub:
    """See the module's docstring. `log` gets one line of text at a time."""

    def __init__(
        self,
        tokens: Tokens,
        names: Names,
        pages: Pages,
        certificate: Certificate | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.heartbeat = heartbeat
        self.port = 0
        self._tokens, self._names, self._pages, self._certificate = tokens, names, pages, certificate
        self._book = Logbook(log)
        self._leases = Leases()
        self._gate, self._room = Gate(), Room(MOST)
        self._clients: dict[bytes, Peer] = {}
        self._devices: dict[str, Peer] = {}
        self._watchers: dict[Peer, asyncio.Event] = {}
        self._shown: dict[str, Shown] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._server: Server | None = None
        self._stood_still = 0.0

    async def start(self, host: str, port: int) -> None:
        """Listens. Raises UsageError for a port that is taken and a host that is not this machine's."""
        most = self._plan()
        listening = listen(host, port)
        self.port = listening.getsockname()[1]
        address = self.address
        self._cookies = Cookies(self._tokens, address.scheme, address.port, address.fingerprint)
        door = Door(listening, self._gate, most, lambda text: self._log("refused", text))
        asyncio.get_running_loop().set_exception_handler(self._note_trouble)
        # The library reports broken handshakes of port scanners and the like as errors; what matters is in our own log.
        quiet = logging.getLogger("tapml.remote.hub.websockets")
        quiet.setLevel(logging.CRITICAL)
        self._server = await serve(
            self._serve,
            sock=door,
            ssl=self._certificate.context() if self._certificate else None,
            process_request=self._answer,
            create_connection=functools.partial(Peer, door),  # type: ignore[arg-type]
            compression=None,
            server_header="TapML",
            ping_interval=None,
            open_timeout=HELLO_SECONDS,
            close_timeout=CLOSE_SECONDS,
            max_size=MESSAGE_LIMIT,
            max_queue=READ_QUEUE,
            write_limit=WRITE_LIMIT,
            logger=quiet,
        )
        self._spawn(self._beat())

    def _plan(self) -> int:
        """How many connections there may be, and which of them: fewer where this process may not open as many files. Raises
        UsageError when it may open next to none."""
        wanted = MOST + MOST_NEW + MOST_LEAVING
        most = descriptors(wanted)
        strangers = min(MOST_NEW, most * MOST_NEW // wanted)
        self._gate = Gate(strangers, min(MOST_NEW_OF_ONE, strangers // 2), strangers)
        self._room = Room(min(MOST, most - 2 * strangers))
        if most < wanted:
            self._log("owner", f"this process may open few files: the hub takes {self._room.most} connections (see ulimit -n)")
        return most

    async def close(self) -> None:
        """Says goodbye to all; they will look for the hub again."""
        for task in list(self._background):
            task.cancel()
        if self._server is not None:
            self._server.close()
            self._gate.clear()
            await self._server.wait_closed()
        self._book.close()

    @property
    def address(self) -> HubAddress:
        fingerprint = self._certificate.fingerprint if self._certificate else ""
        scheme = "https" if self._certificate else "http"
        return HubAddress(scheme, self._names.shown, self.port, token=self._tokens.secret, fingerprint=fingerprint)

    @property
    def url(self) -> str:
        return self.address.url

    @property
    def page(self) -> str:
        """The same for a browser, which has no use for the fingerprint."""
        return replace(self.address, fingerprint="").url

    def pairing(self) -> PairingOffer:
        pairing = self._tokens.pairing(self._now())
        url = replace(self.address, token="", fingerprint="", pair=pairing.code).url
        return PairingOffer(pairing.code, url, pairing.seconds)

    # Coming in.

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        try:
            return self._pages.answer(request, self._cookies)
        except ValueError:
            return connection.respond(http.HTTPStatus.BAD_REQUEST, "This request cannot be read.\n")

    async def _serve(self, connection: ServerConnection) -> None:
        assert isinstance(connection, Peer)
        try:
            try:
                await self._meet(connection)
            except Refusal as refusal:
                await self._refuse(connection, refusal)
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == 1009:
                self._log("refused", f"ended a connection from {connection.place}: it sent a message that is too large")
        except Exception:
            self._log("bug", f"a bug of the hub ended a connection from {connection.place}: {traceback.format_exc()}")
            raise
        finally:
            self._room.leave(connection)

    async def _meet(self, peer: Peer) -> None:
        """From the first message to the end of the connection."""
        assert peer.request is not None
        if not same_origin(peer.request, self.address.scheme):
            raise Refusal("origin", "The page that connects is not this hub's own. Open the address that tapml hub prints.")
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                data = await peer.recv()
        except TimeoutError:
            raise Refusal("protocol", f"No hello came within {HELLO_SECONDS:.0f} s.") from None
        hello = parse_hello(data)
        added, holder = self._let_in(hello, peer)
        welcome = {"version": VERSION, "name": "", "heartbeat": self.heartbeat, **added}
        peer.let_in()
        if isinstance(hello, ClientHello):
            await self._client(peer, hello, welcome)
        elif isinstance(hello, DeviceHello):
            await self._device(peer, hello, welcome, holder)
        else:
            await self._watcher(peer, welcome)

    def _let_in(self, hello: Hello, peer: Peer) -> tuple[dict[str, str], str]:
        """What to add to the welcome (for a device that paired, its token), and whose token it is. Raises Refusal."""
        added = {}
        token = self._cookies.plain(hello.token)
        if isinstance(hello, DeviceHello) and hello.pair and not token:
            if why := self._room.why_not("a new one", peer.place):
                raise Refusal("full", why)
            try:
                token = added["token"] = self._tokens.redeem(hello.pair, self._now(), peer.place)
            except PairingRefused as error:
                raise Refusal("pairing", str(error)) from error
        role = "client" if isinstance(hello, ClientHello) else "device" if isinstance(hello, DeviceHello) else "watch"
        if token:
            if not self._tokens.opens(role, token):
                raise Refusal("token", "The token is wrong for this hub. Copy the whole address that tapml hub prints.")
        else:
            assert peer.request is not None
            token = self._cookies.credential(peer.request, as_device(peer.request))
            if not self._tokens.opens_page(role, token):
                raise Refusal("token", "The hub does not know this browser. Open the whole address that tapml hub prints.")
        holder = self._tokens.holder(token)
        if why := self._room.why_not(holder, peer.place):
            raise Refusal("full", why)
        self._room.enter(peer, holder, peer.place)
        return added, holder

    async def _refuse(self, peer: Peer, refusal: Refusal) -> None:
        self._log("refused", f"refused a connection from {peer.place}: {refusal}")
        peer.refused()
        peer.tell("refused", refusal.code, str(refusal))
        await peer.close(1008, refusal.code)

    # The three roles.

    async def _client(self, peer: Peer, hello: ClientHello, welcome: dict[str, Any]) -> None:
        session = hello.session
        old = self._clients.get(session)
        self._clients[session] = peer
        peer.tell("welcome", welcome)
        if old is not None:
            self._replace(old)

        def take(name: str, arguments: tuple[Any, ...]) -> bool:
            if self._clients.get(session) is not peer:
                return True  # a newer connection speaks for the client now
            if name == "doing":
                self._leases.doing(session, line(arguments[0]))
                self._changed()
            elif name == "end":
                del self._clients[session]
                self._say(self._leases.client_ended(session, self._now()))
            else:
                return False
            return True

        def other() -> Peer | None:
            device = self._leases.device_of(session)
            return None if device is None else self._devices.get(device)

        peer.partner = other
        try:
            self._say(self._leases.client_joined(session, hello.wish, self._now()))
            while self._clients.get(session) is peer:
                await self._hear(peer, take)
        finally:
            if self._clients.get(session) is peer:
                del self._clients[session]
                self._say(self._leases.client_left(session, self._now()))

    async def _device(self, peer: Peer, hello: DeviceHello, welcome: dict[str, Any], holder: str) -> None:
        joining = replace(hello.joining, holder=holder)
        await self._prove(joining)
        name, said = self._leases.device_joined(joining, self._now())
        old = self._devices.get(name)
        self._devices[name] = peer
        shown = self._shown[name] = Shown(hello.kind, hello.system)
        peer.tell("welcome", {**welcome, "name": name})
        if old is not None:
            self._replace(old)
        ready = ", ".join(target for target, offer in hello.joining.offers.items() if offer.ready)
        self._log(self._kind(name), f"{name} joined ({hello.kind}, {hello.system}), offers {ready or 'nothing yet'}")

        def take(kind: str, arguments: tuple[Any, ...]) -> bool:
            now = self._now()
            if self._devices.get(name) is not peer:
                return True  # a newer connection speaks for the device now
            if kind == "offers":
                before, offers = self._leases.offers_of(name), parse_offers(arguments[0])
                if new := [t for t, o in offers.items() if o.ready and not (t in before and before[t].ready)]:
                    self._log(self._kind(name), f"{name} offers {', '.join(new)}")
                self._say(self._leases.offers(name, offers, now))
            elif kind == "status":
                shown.status(arguments[0], now)
                retired = arguments[0]["state"] == "retired"
                if retired != self._leases.is_retired(name):
                    self._say(self._leases.retired(name, retired, now))
            else:
                return False
            self._changed()
            return True

        def other() -> Peer | None:
            session = self._leases.client_of(name)
            return None if session is None else self._clients.get(session)

        peer.partner = other
        try:
            self._say(said)
            while self._devices.get(name) is peer:
                await self._hear(peer, take)
        finally:
            self._lose(name, peer)

    async def _watcher(self, peer: Peer, welcome: dict[str, Any]) -> None:
        changed = self._watchers[peer] = asyncio.Event()
        changed.set()
        peer.tell("welcome", welcome)

        def take(name: str, arguments: tuple[Any, ...]) -> bool:
            if name == "pair":
                offer = self.pairing()
                fields = {"code": offer.code, "url": offer.url, "svg": qr_svg(offer.url), "seconds": offer.seconds}
                peer.tell("pairing", fields)
            return name == "pair"

        showing = self._spawn(self._show(peer, changed))
        try:
            while True:
                await self._hear(peer, take)
        finally:
            showing.cancel()
            del self._watchers[peer]

    async def _hear(self, peer: Peer, take: Callable[[str, tuple[Any, ...]], bool]) -> None:
        """One message: a packet that could not be passed on at once, or a control message for `take`, which says whether it knows
        it."""
        data = await peer.recv()
        if isinstance(data, bytes) and is_session(data) and peer.partner is not None:
            await peer.pass_on(data)
            return
        message = parse_control(data)
        if message.name != "pong" and not take(message.name, message.arguments):
            raise Refusal("protocol", f"A {message.name} message came, which is not for this side to send.")

    # Going on.

    def _say(self, said: list[Said]) -> None:
        """Tells the ends what `leases` decided."""
        for one in said:
            if isinstance(one.to, bytes):
                peer = self._clients.get(one.to)
            else:
                peer = self._devices.get(one.to)
                self._log_lease(one.to, one)
            if peer is not None:
                peer.tell(one.message, *one.arguments)
        self._changed()

    def _changed(self) -> None:
        for event in self._watchers.values():
            event.set()

    async def _show(self, peer: Peer, changed: asyncio.Event) -> None:
        """Sends a watcher the devices when something changed, at most twice a second and no faster than it reads."""
        while True:
            await changed.wait()
            changed.clear()
            await peer.send_slowly(pack(listing(self._leases, self._shown, self._now())))
            await asyncio.sleep(LISTING_SECONDS)

    async def _beat(self) -> None:
        """Pings, drops who is silent, and lets time pass for the leases."""
        loop = asyncio.get_running_loop()
        step, number, last = min(TICK_SECONDS, self.heartbeat), 0, loop.time()
        pinged = last
        while True:
            await asyncio.sleep(step)
            now = loop.time()
            peers = [*self._clients.values(), *self._devices.values(), *self._watchers]
            if now - last > step + self.heartbeat:
                # This process stood still: what the others said meanwhile has not been read, and they could not come back.
                self._stood_still += now - last - step
                for peer in peers:
                    peer.heard = now
            last = now
            for peer in peers:
                most = (STUCK_HEARTBEATS if peer.paused else SILENT_HEARTBEATS) * self.heartbeat
                if peer.silent_for(now) > most and not peer.held_up:
                    peer.cut()
            if now - pinged >= self.heartbeat:
                number, pinged = number + 1, now
                for peer in peers:
                    if not peer.paused:  # else it has something to hear anyway
                        peer.tell("ping", number)
            self._say(self._leases.tick(self._now()))
            if cut := self._gate.take_made_room():
                self._log("refused", f"connections cut off without a hello, to make room for newer ones: {cut}")
            self._book.tick(time.monotonic())
            for name in self._shown.keys() - set(self._leases.names()):
                del self._shown[name]

    def _now(self) -> float:
        """Seconds that the hub has lived through."""
        return asyncio.get_running_loop().time() - self._stood_still

    async def _prove(self, joining: Joining) -> None:
        """When a device comes under the name of one that is connected, that one has to show that it is there: a phone whose page
        was loaded again should get its old name, though its old connection has not been found dead yet. A device with another
        token gets another name anyway."""
        holder = self._devices.get(joining.name)
        if holder is None or not self._leases.may_take_over(joining):
            return
        asked = holder.heard
        holder.tell("ping", 0)
        until = holder.loop.time() + min(PROOF_SECONDS, self.heartbeat)
        while holder.heard <= asked and not holder.held_up and holder.loop.time() < until:
            await asyncio.sleep(0.02)
        if holder.heard <= asked and not holder.held_up:
            self._lose(joining.name, holder)
            holder.cut()

    def _lose(self, name: str, peer: Peer) -> None:
        """A device's connection is gone, unless a newer one took its place."""
        if self._devices.get(name) is peer:
            del self._devices[name]
            self._log(self._kind(name), f"{name} left")
            self._say(self._leases.device_left(name, self._now()))

    def _replace(self, old: Peer) -> None:
        old.tell("refused", "busy", "A newer connection of the same client or device took the place of this one.")
        self._spawn(old.close(1008, "busy"))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log("bug", f"a bug of the hub: {''.join(traceback.format_exception(error))}")

    def _log(self, kind: str, text: str) -> None:
        self._book.line(kind, text, time.monotonic())

    def _kind(self, name: str) -> str:
        """Of log lines about this device."""
        return "paired" if self._leases.holder_of(name) else "owner"

    def _log_lease(self, name: str, said: Said) -> None:
        if said.message == "lease":
            lease = said.arguments[0]
            self._log(self._kind(name), f"{name} works on {lease['target']} for {lease['label'] or 'a client'}")
        elif said.message == "release":
            self._log(self._kind(name), f"{name} is free again")

    def _note_trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What the event loop would write with its traceback: of sockets and TLS a line, of what is our bug all of it."""
        error = context.get("exception")
        if error is None or isinstance(error, OSError):
            self._log("trouble", line(f"{context.get('message')} ({error})" if error else str(context.get("message"))))
        else:
            told = "".join(traceback.format_exception(error))
            self._log("bug", f"a bug of the hub: {context.get('message')}: {told}")
