"""The hub: clients, devices and watchers connect to it; it says which device belongs to which client, and passes their packets
on.

    hub = Hub(tokens, names, Pages.load(names), certificate=None, log=print)
    await hub.start("127.0.0.1", 8765)
    hub.url                                  with the token: for clients, agents and the page
    hub.pairing()                            a code, and an address with it, for a phone
    await hub.close()

It runs in one event loop, and only here do the pieces meet: `leases` decides who gets what, `tokens` who may come in, `pages`
what a browser is shown, `hello` what an end said of itself, `listing` what watchers see, `peer` how a connection is written to.
The hub keeps nothing that the ends could not bring again: when it is killed and started anew, all of them connect again and go
on. What a packet between client and device says is not looked at. An end that reads slowly holds up only the one it talks to.
"""

from __future__ import annotations

import asyncio
import functools
import http
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tapml.remote.address import HubAddress
from tapml.remote.hub.certificate import Certificate
from tapml.remote.hub.gate import MOST, Gate
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
from tapml.remote.hub.leases import Leases, Said
from tapml.remote.hub.listing import Shown, listing, pack
from tapml.remote.hub.pages import Pages, same_origin
from tapml.remote.hub.peer import READ_QUEUE, WRITE_LIMIT, Peer
from tapml.remote.hub.qr import qr_svg
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

# Lines about refused connections in one minute. More are only counted.
MOST_REFUSED_LINES = 20


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
        self._tokens, self._names, self._pages, self._certificate, self._log = tokens, names, pages, certificate, log
        self._leases = Leases()
        self._gate = Gate()
        self._clients: dict[bytes, Peer] = {}
        self._devices: dict[str, Peer] = {}
        self._watchers: dict[Peer, asyncio.Event] = {}
        self._shown: dict[str, Shown] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._server: Server | None = None
        self._stood_still = 0.0
        self._refused = [0, 0.0]

    async def start(self, host: str, port: int) -> None:
        """Listens. Raises UsageError for a port that is taken and a host that is not this machine's."""
        listening = listen(host, port)
        self.port = listening.getsockname()[1]
        # The library reports broken handshakes of port scanners and the like as errors; what matters is in our own log.
        quiet = logging.getLogger("tapml.remote.hub.websockets")
        quiet.setLevel(logging.CRITICAL)
        self._server = await serve(
            self._serve,
            sock=listening,
            ssl=self._certificate.context() if self._certificate else None,
            process_request=self._answer,
            create_connection=functools.partial(Peer, self._gate),  # type: ignore[arg-type]
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

    async def close(self) -> None:
        """Says goodbye to all; they will look for the hub again."""
        for task in list(self._background):
            task.cancel()
        if self._server is not None:
            self._server.close()
            self._gate.clear()
            await self._server.wait_closed()

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
            return self._pages.answer(request, lambda token: self._opens("device", token))
        except ValueError:
            return connection.respond(http.HTTPStatus.BAD_REQUEST, "This request cannot be read.\n")

    def _opens(self, role: str, token: str) -> bool:
        """With or without the certificate's fingerprint, which belongs to the address rather than the token."""
        if self._certificate is not None and self._certificate.fingerprint:
            token = token.removesuffix(f".{self._certificate.fingerprint}")
        return self._tokens.opens(role, token)

    async def _serve(self, connection: ServerConnection) -> None:
        assert isinstance(connection, Peer)
        try:
            try:
                await self._meet(connection)
            except Refusal as refusal:
                await self._refuse(connection, refusal)
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == 1009:
                self._log_refused(connection, f"a message of more than {MESSAGE_LIMIT} bytes")
        except Exception:
            self._log(f"a bug of the hub ended a connection from {connection.place}: {traceback.format_exc()}")
            raise

    async def _meet(self, peer: Peer) -> None:
        """From the first message to the end of the connection."""
        if peer.crowded:
            raise Refusal("full", "Too many connections wait to be let in. Try again in a few seconds.")
        assert peer.request is not None
        if not same_origin(peer.request, self.address.scheme):
            raise Refusal("origin", "The page that connects is not this hub's own. Open the address that tapml hub prints.")
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                data = await peer.recv()
        except TimeoutError:
            raise Refusal("protocol", f"No hello came within {HELLO_SECONDS:.0f} s.") from None
        hello = parse_hello(data)
        welcome = {"version": VERSION, "name": "", "heartbeat": self.heartbeat, **self._let_in(hello, peer.place)}
        peer.let_in()
        if isinstance(hello, ClientHello):
            await self._client(peer, hello, welcome)
        elif isinstance(hello, DeviceHello):
            await self._device(peer, hello, welcome)
        else:
            await self._watcher(peer, welcome)

    def _let_in(self, hello: Hello, place: str) -> dict[str, str]:
        """What to add to the welcome: for a device that paired, its token. Raises Refusal."""
        if len(self._clients) + len(self._devices) + len(self._watchers) >= MOST:
            raise Refusal("full", f"The hub has {MOST} connections, and takes no more. Try again later.")
        if isinstance(hello, DeviceHello) and hello.pair and not hello.token:
            try:
                return {"token": self._tokens.redeem(hello.pair, self._now(), place)}
            except PairingRefused as error:
                raise Refusal("pairing", str(error)) from error
        role = "client" if isinstance(hello, ClientHello) else "device" if isinstance(hello, DeviceHello) else "watch"
        if not self._opens(role, hello.token):
            raise Refusal("token", "The token is wrong for this hub. Copy the whole address that tapml hub prints.")
        return {}

    async def _refuse(self, peer: Peer, refusal: Refusal) -> None:
        self._log_refused(peer, str(refusal))
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

    async def _device(self, peer: Peer, hello: DeviceHello, welcome: dict[str, Any]) -> None:
        await self._prove(hello)
        name, said = self._leases.device_joined(hello.joining, self._now())
        old = self._devices.get(name)
        self._devices[name] = peer
        shown = self._shown[name] = Shown(hello.kind, hello.system)
        peer.tell("welcome", {**welcome, "name": name})
        if old is not None:
            self._replace(old)
        ready = ", ".join(target for target, offer in hello.joining.offers.items() if offer.ready)
        self._log(f"{name} joined ({hello.kind}, {hello.system}), offers {ready or 'nothing yet'}")

        def take(kind: str, arguments: tuple[Any, ...]) -> bool:
            now = self._now()
            if self._devices.get(name) is not peer:
                return True  # a newer connection speaks for the device now
            if kind == "offers":
                before, offers = self._leases.offers_of(name), parse_offers(arguments[0])
                if new := [t for t, o in offers.items() if o.ready and not (t in before and before[t].ready)]:
                    self._log(f"{name} offers {', '.join(new)}")
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
            for name in self._shown.keys() - set(self._leases.names()):
                del self._shown[name]

    def _now(self) -> float:
        """Seconds that the hub has lived through."""
        return asyncio.get_running_loop().time() - self._stood_still

    async def _prove(self, hello: DeviceHello) -> None:
        """When a device comes under the name of one that is connected, that one has to show that it is there: a phone whose page
        was loaded again should get its old name, though its old connection has not been found dead yet."""
        holder = self._devices.get(hello.joining.name)
        if holder is None or self._leases.boot_of(hello.joining.name) == hello.joining.boot:
            return
        asked = holder.heard
        holder.tell("ping", 0)
        until = holder.loop.time() + min(PROOF_SECONDS, self.heartbeat)
        while holder.heard <= asked and not holder.held_up and holder.loop.time() < until:
            await asyncio.sleep(0.02)
        if holder.heard <= asked and not holder.held_up:
            self._lose(hello.joining.name, holder)
            holder.cut()

    def _lose(self, name: str, peer: Peer) -> None:
        """A device's connection is gone, unless a newer one took its place."""
        if self._devices.get(name) is peer:
            del self._devices[name]
            self._log(f"{name} left")
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
            self._log(f"a bug of the hub: {''.join(traceback.format_exception(error))}")

    def _log_lease(self, name: str, said: Said) -> None:
        if said.message == "lease":
            lease = said.arguments[0]
            self._log(f"{name} works on {lease['target']} for {lease['label'] or 'a client'}")
        elif said.message == "release":
            self._log(f"{name} is free again")

    def _log_refused(self, peer: Peer, why: str) -> None:
        count, since = self._refused
        now = self._now()
        if now - since > 60.0:
            if count > MOST_REFUSED_LINES:
                self._log(f"refused {count - MOST_REFUSED_LINES:.0f} more connections in a minute")
            count, since = 0, now
        self._refused = [count + 1, since]
        if count < MOST_REFUSED_LINES:
            self._log(f"refused a connection from {peer.place}: {why}")
