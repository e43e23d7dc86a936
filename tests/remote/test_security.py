"""Strangers at the hub: who may not come in is told so and costs nothing, and nothing that is sent makes it do what it should
not."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tapml.errors import UnavailableError, UsageError
from tapml.remote.connection import Refused
from tapml.remote.hub import hub as hub_module
from tapml.remote.hub.certificate import Certificate
from tapml.remote.hub.hosting import Names
from tapml.remote.hub.hub import Hub
from tapml.remote.hub.pages import Pages
from tapml.remote.hub.tokens import LOCKED_SECONDS, MOST_CODES, MOST_PLACES, PAIRING_SECONDS, PairingRefused, Tokens
from tapml.remote.wire import CONTROL_LIMIT, Control, control, decode, packet
from tests.remote import processes
from tests.remote.ends import client, client_hello, device, device_hello, watcher
from tests.remote.processes import running_hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[processes.Hub]:
    with running_hub(tmp_path_factory.mktemp("state")) as running:
        yield running
        assert "Traceback" not in running.said() and running.address.token not in running.said()


def asked(
    hub: processes.Hub, path: str, host: str | None = None, method: str = "GET", more: str = ""
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of a request as it stands here; `path` goes out unchanged. `more`: another line of its head."""
    with socket.create_connection(("127.0.0.1", hub.port), 10) as raw:
        host = f"127.0.0.1:{hub.port}" if host is None else host
        raw.sendall(f"{method} {path} HTTP/1.1\r\n{f'Host: {host}' if host else 'X: y'}\r\n{more}\r\n".encode("latin-1"))
        response = http.client.HTTPResponse(raw, method=method)
        response.begin()
        return response.status, dict(response.getheaders()), response.read().decode()


@contextmanager
def raw(hub: processes.Hub, **options: Any) -> Iterator[ClientConnection]:
    with connect(hub.address.websocket, compression=None, **options) as connection:
        yield connection


def answer(connection: ClientConnection) -> tuple[str, int]:
    """The code with which the hub refuses, and the close code; "" if it says nothing."""
    said = ""
    try:
        while True:
            message = decode(bytes(connection.recv(timeout=15)))  # type: ignore[arg-type]
            assert isinstance(message, Control)
            said = message.arguments[0] if message.name == "refused" else said
    except ConnectionClosed as closed:
        return said, closed.rcvd.code if closed.rcvd else 0


# The page.


def test_the_page_needs_the_token_and_its_parts_are_public(tmp_path: Path, hub: processes.Hub) -> None:
    for query in ("", "?token=", "?token=wrong", "?token=x&" * 50, f"?tokens={hub.address.token}"):
        status, _, body = asked(hub, f"/{query}")
        assert (status, body.count("\n")) == (403, 1) and "tapml hub" in body
    (tmp_path / "index.html").write_text("<p>the page</p>")
    (tmp_path / "secret.pem").write_text("no")
    (tmp_path / "part.js").write_text("1")
    pages = Pages.load(Names.of("127.0.0.1"), tmp_path)
    assert sorted(pages.files) == ["/web/index.html", "/web/part.js"]
    assert "<p>" not in pages.files["/web/part.js"][1].decode()
    assert asked(hub, "/?pair=ABCDE-FGHJK")[0] == 200
    status, headers, body = asked(hub, f"/?token={hub.address.token}")
    assert status == 200 and headers["Cache-Control"] == "no-store" and "/web/address.js" in body and "/web/page.js" not in body
    cookie = headers["Set-Cookie"]
    assert cookie.startswith(f"tapml-{hub.port}=p-") and cookie.endswith("; Path=/; HttpOnly; SameSite=Strict")
    assert hub.address.token not in cookie
    status, headers, _ = asked(hub, "/web/wire.js")
    assert status == 200 and headers["Content-Type"].startswith("text/javascript")
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["worker-src"] == policy["style-src"] == "'self'"
    own = f"127.0.0.1:{hub.port}"
    assert policy["connect-src"] == f"'self' ws://{own} wss://{own}" and policy["img-src"] == "'self' data:"


@pytest.mark.parametrize(
    "path",
    ["/web/../../etc/passwd", "/web/%2e%2e/%2e%2e/etc/passwd", "/web/..%2f..%2fpyproject.toml", "//etc/passwd", "/etc/passwd",
     "/web/", "/web", "/web/../remote/hub/hub.py", "/web/wire.js/", "/web/wire.js%00", "/web/.", "/token", "/wire.js", "*"],
)  # fmt: skip
def test_no_path_reaches_a_file(hub: processes.Hub, path: str) -> None:
    status, _, body = asked(hub, path)
    assert status == 404 and body == "There is no such page here.\n"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "[", "a b"])
def test_another_name_for_this_machine_gets_nothing(hub: processes.Hub, host: str) -> None:
    """A page of another site whose name was made to lead here sends that site's name."""
    assert asked(hub, f"/?token={hub.address.token}", host=host)[0] in (400, 421)
    assert asked(hub, "/wire", host=host)[0] in (400, 421)


def test_other_methods_are_refused(hub: processes.Hub) -> None:
    assert asked(hub, "/web/wire.js", method="POST")[0] == 405
    assert asked(hub, "/wire")[0] == 426, "no upgrade"


def test_who_asks_and_reads_no_answer_is_cut_off(hub: processes.Hub) -> None:
    """A stranger's pings are answered by the library whether the answers are read or not."""
    begin = (
        f"GET /wire HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    pings = (b"\x89\xfd" + bytes(4) + bytes(125)) * 1000
    before = psutil.Process(hub.pid).memory_info().rss
    with socket.create_connection(("127.0.0.1", hub.port), 10) as connection:
        connection.sendall(begin.encode())
        with pytest.raises(OSError, match=r"reset|pipe"):
            for _ in range(2**28 // len(pings)):
                connection.sendall(pings)
    assert psutil.Process(hub.pid).memory_info().rss - before < 2**25


# Coming in.


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://hub:{port}"])
def test_a_page_of_another_origin_is_refused(hub: processes.Hub, origin: str) -> None:
    with raw(hub, origin=origin.format(port=hub.port)) as connection:
        assert answer(connection) == ("origin", 1008)


def test_the_hubs_own_page_is_let_in(hub: processes.Hub) -> None:
    with raw(hub, origin=f"http://127.0.0.1:{hub.port}") as connection:
        connection.send(control("hello", {"version": 1, "role": "watch", "token": hub.address.token}))
        welcome = decode(bytes(connection.recv()))  # type: ignore[arg-type]
        assert isinstance(welcome, Control) and welcome.name == "welcome"


def of_page(hub: processes.Hub, role: str, cookie: str, path: str = "/wire", origin: str | None = None) -> str:
    """What the hub says to a page with this cookie: "welcome", or the code with which it refuses."""
    hellos: dict[str, dict[str, Any]] = {"watch": {"role": "watch"}, "client": client_hello(), "device": device_hello("page")}
    headers = {"Cookie": cookie} if cookie else {}
    with connect(f"ws://127.0.0.1:{hub.port}{path}", additional_headers=headers, origin=origin) as connection:  # type: ignore[arg-type]
        with suppress(ConnectionClosed):  # of another origin it hears nothing
            connection.send(control("hello", {"version": 1, "token": "", **hellos[role]}))
        message = decode(bytes(connection.recv(timeout=15)))  # type: ignore[arg-type]
        assert isinstance(message, Control)
        if message.name == "refused":
            answer(connection)  # until the end
            return str(message.arguments[0])
        return message.name


def test_a_cookie_is_for_the_hubs_own_pages_and_opens_no_clients_role(hub: processes.Hub) -> None:
    own = f"http://127.0.0.1:{hub.port}"
    mine = asked(hub, f"/?token={hub.address.token}")[1]["Set-Cookie"].partition(";")[0]
    for role, answer in (("watch", "welcome"), ("device", "welcome"), ("client", "token")):
        assert of_page(hub, role, mine, origin=own) == answer
        assert of_page(hub, role, f"a=b; {mine}x; {mine}; c", origin=own) == answer, "beside others"
        assert of_page(hub, role, mine) == "token", "a program has the token"
        assert of_page(hub, role, mine, origin="http://evil.example") == "origin"
        assert of_page(hub, role, mine, "/wire?device", own) == "token", "it is not the cookie of a paired device"
        for cookie in ("", mine[:-1], mine + "x", mine.replace("=p-", "="), mine.replace("=", "\u00e9="), f"{mine[:-2]}\u00e9"):
            assert of_page(hub, role, cookie, origin=own) == "token", cookie
    assert asked(hub, "/", more=f"Cookie: {mine}\r\n")[0] == 200
    assert asked(hub, "/?device", more=f"Cookie: {mine}\r\n")[0] == asked(hub, "/", more=f"Cookie: {mine}x\r\n")[0] == 403
    assert asked(hub, "/?token=wrong", more=f"Cookie: {mine}\r\n")[0] == 403


def test_a_paired_device_gets_a_cookie_of_its_own(hub: processes.Hub) -> None:
    own = f"http://127.0.0.1:{hub.port}"
    with watcher(hub.url) as watching:
        watching.tell("pair")
        with device(watching.wait("pairing")["url"], "phone") as phone:
            token = phone.connection.welcome["token"]
    status, headers, _ = asked(hub, "/session", more=f"Authorization: Bearer {token}\r\n")
    assert status == 200 and "; HttpOnly; SameSite=Strict" in headers["Set-Cookie"] and "Max-Age" in headers["Set-Cookie"]
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert cookie == asked(hub, f"/?token={token}")[1]["Set-Cookie"].partition(";")[0] == f"tapml-{hub.port}-device={token}"
    answers = [of_page(hub, role, cookie, "/wire?device", own) for role in ("device", "watch", "client")]
    assert answers == ["welcome", "token", "token"]
    assert of_page(hub, "device", cookie, origin=own) == of_page(hub, "device", cookie, "/wire?device") == "token"
    assert [asked(hub, path, more=f"Cookie: {cookie}\r\n")[0] for path in ("/?device", "/")] == [200, 403]
    _, headers, body = asked(hub, "/?device", more=f"Cookie: {cookie}\r\n")
    assert headers["Set-Cookie"].startswith(f"{cookie}; ") and "/web/page.js" in body, "for another month"
    for more in ("", f"Authorization: Basic {token}\r\n", "Authorization: Bearer x\r\n", f"Cookie: {cookie}\r\n"):
        status, headers, _ = asked(hub, "/session", more=more)
        assert status == 403 and "Set-Cookie" not in headers
    assert asked(hub, f"/session?token={token}")[0] == 403, "an address is no place for a token"


def test_tokens_open_their_role_only(hub: processes.Hub) -> None:
    place = hub.address.redacted
    with watcher(hub.url) as watching:
        watching.tell("pair")
        pairing = watching.wait("pairing")
    with device(pairing["url"], "paired") as phone:
        mine = phone.connection.welcome["token"]
    device(f"{place}/?token={mine}", "paired").__enter__().connection.close()
    wrong = ("x", hub.address.token[:-1], hub.address.token + "x", mine[:-1], mine.replace("-", "."), mine.upper(), "d--", "é")
    for make, tokens in (
        (lambda url: client(url), (mine, *wrong)),
        (lambda url: watcher(url), (mine, *wrong)),
        (lambda url: device(url, "d"), wrong),
    ):
        for token in tokens:
            if "." in token:
                continue  # no address has that
            with pytest.raises(Refused) as refused:
                make(f"{place}/?token={token}").__enter__()
            assert refused.value.code == "token", token
    with pytest.raises(Refused) as refused:
        device(pairing["url"], "again").__enter__()
    assert refused.value.code == "pairing", "a code is good once"


HELLO = client_hello()
MALFORMED: dict[str, bytes | str] = {
    "nothing": b"",
    "text": "hello",
    "no kind": b"\2abc",
    "no MessagePack": b"\0\xc1",
    "no token": control("hello", {"version": 1, **HELLO}),
    "no version": control("hello", {**HELLO, "token": "t"}),
    "no role": control("hello", {"version": 1, "token": "t"}),
    "another role": control("hello", {"version": 1, "role": "admin", "token": "t"}),
    "an unknown field": control("hello", {"version": 1, "token": "t", **HELLO, "extra": 1}),
    "a short session": control("hello", {"version": 1, "token": "t", **HELLO, "session": b"1"}),
    "not hello first": control("doing", "x"),
    "of the hub": control("welcome", {"version": 1, "name": "n", "heartbeat": 1}),
    "a packet first": packet(bytes(16), 1, 0, [["synchronize", 1]]),
    "trailing bytes": control("pong", 1) + b"\0",
    "deep": b"\0" + b"\x91" * 200 + b"\x90",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_hello_is_refused(hub: processes.Hub, name: str) -> None:
    with raw(hub) as connection:
        connection.send(MALFORMED[name])
        assert answer(connection) == ("protocol", 1008)


@pytest.mark.parametrize("bad", [b"", b"\0", "text", MALFORMED["of the hub"], control("pong", 1) + b"\0"])
def test_a_malformed_message_ends_a_connection_that_was_let_in(hub: processes.Hub, bad: bytes | str) -> None:
    with raw(hub) as connection:
        connection.send(control("hello", {"version": 1, "token": hub.address.token, **client_hello(target="none")}))
        connection.send(bad)
        assert answer(connection) == ("protocol", 1008)


def test_another_version_is_told_so(hub: processes.Hub) -> None:
    with raw(hub) as connection:
        connection.send(control("hello", {"version": 2, "role": "oracle", "token": "t"}))
        assert answer(connection) == ("version", 1008)


def test_what_is_too_large_is_refused_before_it_came(hub: processes.Hub) -> None:
    with raw(hub) as connection:
        connection.send(b"\0" + bytes(CONTROL_LIMIT))
        assert answer(connection) == ("size", 1008)
    before = psutil.Process(hub.pid).memory_info().rss
    for size in (2**21, 2**40, 2**62):
        with raw(hub) as connection:
            connection.socket.sendall(b"\x82\xff" + size.to_bytes(8, "big") + b"mask")
            assert answer(connection) == ("", 1009)
    fragment = b"\x80\xfe" + (60000).to_bytes(2, "big") + bytes(4) + bytes(60000)
    with raw(hub) as connection:
        connection.socket.sendall(b"\x02" + fragment[1:])  # never finished
        with pytest.raises((ConnectionClosed, OSError)):
            for _ in range(60):
                connection.socket.sendall(b"\x00" + fragment[1:])
            connection.recv(timeout=15)
    assert psutil.Process(hub.pid).memory_info().rss - before < 2**24


def test_junk_is_nothing_to_it(hub: processes.Hub) -> None:
    for junk in (b"\0" * 1000, os.urandom(5000), b"GET / HTTP/1.1\r\n" + b"a" * 100000, b"\x16\x03\x01\x02\0\x01", b""):
        with socket.create_connection(("127.0.0.1", hub.port), 10) as stranger:
            try:
                stranger.sendall(junk)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(65536):
                    pass
            except OSError:
                continue  # it was cut off
    assert hub.devices() is not None


def test_a_flood_of_strangers_locks_nobody_out_who_is_in(hub: processes.Hub) -> None:
    with ExitStack() as stack:
        other = stack.enter_context(device(hub.url, "steady", offers=device_hello("x")["offers"]))
        one = stack.enter_context(client(hub.url, "steady"))
        one.wait("granted")
        strangers = ExitStack()
        for _ in range(200):
            strangers.enter_context(socket.create_connection(("127.0.0.1", hub.port), 10))
        message = packet(one.session, 1, 0, [["synchronize", 1]])
        one.send(message)
        assert other.packet() == message
        strangers.close()
        with client(hub.url, target="none") as after:
            assert after.wait("waiting")


# In this process, where limits can be set.


@contextmanager
def hub_here(tokens: Tokens, certificate: Certificate | None = None) -> Iterator[str]:
    """A hub in a thread; gives its URL."""
    names = Names.of("127.0.0.1")
    made = Hub(tokens, names, Pages.load(names), certificate)
    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()
    try:
        asyncio.run_coroutine_threadsafe(made.start("127.0.0.1", 0), loop).result(10)
        yield made.url
        asyncio.run_coroutine_threadsafe(made.close(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        running.join()
        loop.close()


def test_who_says_no_hello_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HELLO_SECONDS", 2.0)
    with hub_here(Tokens("secret")) as url:
        address = processes.HubAddress.parse(url)
        with connect(address.websocket) as connection:
            assert answer(connection) == ("protocol", 1008)
        with socket.create_connection((address.host, address.port), 10) as slow:
            slow.sendall(b"GET /wire HTTP/1.1\r\nHost: ")
            assert slow.recv(100) == b""


def test_who_never_begins_or_ends_tls_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HELLO_SECONDS", 1.0)
    certificate = Certificate.own_in(tmp_path, Names.of("127.0.0.1"))
    with hub_here(Tokens("secret"), certificate) as url:
        address = processes.HubAddress.parse(url)
        for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with socket.create_connection((address.host, address.port), 10) as slow:
                slow.sendall(begun)
                assert slow.recv(100) == b""


def test_a_stranger_does_not_keep_it_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HELLO_SECONDS", 1000.0)
    with ExitStack() as stack, hub_here(Tokens("secret")) as url:
        address = processes.HubAddress.parse(url)
        stack.enter_context(socket.create_connection((address.host, address.port), 10))
        stack.enter_context(watcher(url))


def test_it_takes_so_many_connections_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MOST", 3)
    with hub_here(Tokens("secret")) as url, ExitStack() as stack:
        for make in (client, watcher, lambda url: device(url, "d")):
            for _ in range(3):
                with make(url):
                    pass
        for _ in range(3):
            stack.enter_context(watcher(url))
        with pytest.raises(Refused) as refused:
            watcher(url).__enter__()
        assert refused.value.code == "full"


def test_guessing_pairing_codes_ends_soon() -> None:
    with hub_here(Tokens("secret")) as url:
        place = processes.HubAddress.parse(url).redacted
        with watcher(url) as watching:
            watching.tell("pair")
            right = watching.wait("pairing")["url"]
        for _ in range(5):
            with pytest.raises(Refused):
                device(f"{place}/?pair=AAAAA-AAAAA", "guesser").__enter__()
        with pytest.raises(Refused, match="Too many wrong pairing codes"):
            device(right, "phone").__enter__()


# Tokens and certificates.


def test_a_pairing_code_is_good_once_and_for_five_minutes() -> None:
    tokens = Tokens("secret")
    one, two = tokens.pairing(0.0), tokens.pairing(0.0)
    typed = one.code.lower().replace("-", " ")
    assert tokens.opens("device", tokens.redeem(typed, PAIRING_SECONDS - 1))
    for code, now in ((one.code, PAIRING_SECONDS - 1), (two.code, PAIRING_SECONDS), ("", 0.0), ("é" * 10, 0.0)):
        with pytest.raises(PairingRefused):
            tokens.redeem(code, now)
    codes = [tokens.pairing(1000.0).code for _ in range(MOST_CODES + 1)]
    with pytest.raises(PairingRefused):
        tokens.redeem(codes[0], 1000.0)
    assert tokens.redeem(codes[1], 1000.0)


def test_five_wrong_codes_in_a_minute_lock_pairing_for_a_while_and_for_their_address_only() -> None:
    tokens = Tokens("secret")
    code, another = tokens.pairing(0.0).code, tokens.pairing(0.0).code

    def wrong(now: float) -> None:
        with pytest.raises(PairingRefused):
            tokens.redeem("WRONG-WRONG", now)

    for now in (0.0, 20.0, 40.0, 60.0, 80.0):
        wrong(now)  # never five within a minute
    for now in (100.0, 101.0, 102.0):
        wrong(now)
    with pytest.raises(PairingRefused, match="Too many"):
        tokens.redeem(code, 103.0)
    with pytest.raises(PairingRefused, match="Too many"):
        tokens.redeem(code, 101.0 + LOCKED_SECONDS)
    assert tokens.redeem(another, 103.0, "192.0.2.8")
    assert tokens.redeem(code, 102.0 + LOCKED_SECONDS)


def test_addresses_that_guess_are_forgotten_before_they_are_too_many() -> None:
    tokens = Tokens("secret")
    for k in range(2 * MOST_PLACES):
        with pytest.raises(PairingRefused):
            tokens.redeem("WRONG-WRONG", 0.0, f"2001:db8::{k:x}")
    assert len(tokens._guessers) == MOST_PLACES


def test_the_secret_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    tokens = Tokens.kept(folder)
    file = folder / "token"
    assert len(tokens.secret) >= 43 and Tokens.kept(folder).secret == tokens.secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    renewed = Tokens.kept(folder, new=True)
    assert renewed.secret == Tokens.kept(folder).secret != tokens.secret
    assert not renewed.opens("device", tokens.device_token())
    file.write_text("short")
    assert len(Tokens.kept(folder).secret) >= 43, "a damaged file is replaced"
    with pytest.raises(UsageError, match="--state"):
        Tokens.kept(file)


def test_https_is_pinned_to_the_hubs_own_certificate(tmp_path: Path) -> None:
    with running_hub(tmp_path, "--host", "0.0.0.0") as hub:
        assert hub.address.scheme == "https" and len(hub.address.fingerprint) == 64
        here = hub.url.replace(hub.address.host, "127.0.0.1")
        with device(here, "phone"), client(here) as one:
            one.wait("granted")
        page = processes.HubAddress.parse(str(hub.told["page"]))
        assert (page.token, page.fingerprint) == (hub.address.token, "")
        assert hub.told["pairing"]["url"].startswith(f"https://{page.host}:{page.port}/?pair=")
        with pytest.raises(UnavailableError, match="another certificate"):
            client(here.replace(hub.address.fingerprint, "0" * 64)).__enter__()
        with pytest.raises(UnavailableError, match="not trusted"):
            client(here.replace(f".{hub.address.fingerprint}", "")).__enter__()
        with socket.create_connection(("127.0.0.1", hub.port), 10) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"HTTP/1.1 200" not in plain.recv(1000)
        trusting = ssl._create_unverified_context()
        browser = http.client.HTTPSConnection("127.0.0.1", hub.port, context=trusting, timeout=10)
        browser.request("GET", "/web/wire.js")
        assert browser.getresponse().status == 200
        browser.request("GET", f"/?token={hub.address.token}.{hub.address.fingerprint}")
        cookie = str(browser.getresponse().getheader("Set-Cookie"))
        assert cookie.startswith(f"__Host-tapml-{hub.port}=") and cookie.endswith("; Path=/; HttpOnly; SameSite=Strict; Secure")
        before = hub.url
        hub.restart()
        assert hub.url == before, "the same certificate"
        assert "Traceback" not in hub.said()


def test_the_certificate_is_made_anew_when_it_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names.of("127.0.0.1")
    first = Certificate.own_in(tmp_path, names)
    assert Certificate.own_in(tmp_path, names) == first and stat.S_IMODE(first.cert.stat().st_mode) == 0o600
    moved = Certificate.own_in(tmp_path, Names("192.0.2.77", ("192.0.2.77", "localhost"), False))
    assert moved.fingerprint != first.fingerprint
    monkeypatch.setattr("tapml.remote.hub.certificate.GOOD_DAYS", 29)
    old = Certificate.own_in(tmp_path, names)
    assert Certificate.own_in(tmp_path, names).fingerprint != old.fingerprint, "it ends within a month"
    old.cert.write_text("no certificate")
    assert Certificate.own_in(tmp_path, names).context()


def test_a_hub_goes_by_the_names_of_the_certificate_that_it_was_given() -> None:
    names = Names("192.0.2.1", ("192.0.2.1", "localhost"), False).certified(("*.lab.example", "hub.example", "www.hub.example"))
    assert names.shown == "hub.example"
    assert all(map(names.include, ("hub.example", "HUB.example", "localhost", "192.0.2.1", "10.1.2.3", "a.lab.example", "[::1]")))
    assert not any(map(names.include, ("example", "evil.example", "lab.example", "xlab.example", "")))
    assert names.certified(("192.0.2.1", "hub.example")).shown == "hub.example" and names.certified(()) == names


def test_a_certificate_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    certificate = Certificate.own_in(tmp_path, Names.of("127.0.0.1"))
    given = Certificate.given(certificate.cert, certificate.key)
    assert given.context() and {"localhost", "127.0.0.1"} <= set(given.names)
    (tmp_path / "bad.pem").write_text(json.dumps({}))
    for cert, key in ((tmp_path / "bad.pem", certificate.key), (certificate.cert, tmp_path / "none.pem"), (tmp_path, tmp_path)):
        with pytest.raises(UsageError, match="cannot be used"):
            Certificate.given(cert, key)


