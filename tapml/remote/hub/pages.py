"""What the hub answers to a browser that asks for a page, and which requests it answers at all.

    pages = Pages.load(names)                       tapml/web, read once
    pages.answer(request, cookies) -> Response | None              None: it is for the WebSocket

Every file that can be had is in memory under its exact address, so no path of a request ever reaches a file system. The page
itself needs the token, or a pairing code, which is not looked at here: it is worth something on the WebSocket only. For a token
the answer brings a cookie (`cookies`), and a script that takes the token out of the address; with the cookie the page itself is
loaded, as "/" by the owner and as "/?device" by a paired device. At `/session` a page that paired gets the cookie for its new
token, which it sends in a header that no other site's page could add. What the page may load and talk to is this hub and nothing
else (Content-Security-Policy).
"""

from __future__ import annotations

import http
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from tapml.languages import LANGUAGES
from tapml.remote.hub.cookies import Cookies
from tapml.remote.hub.hosting import Names
from tapml.targets.known import BROWSER

WIRE = "/wire"
SESSION = "/session"
DEVICE = "device"
WEB = Path(__file__).parents[2] / "web"
PAGE = "index.html"
ENTRY = "enter.html"

# A web folder holds dozens of files of some KiB.
MOST_BYTES = 8 * 2**20

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    f".{LANGUAGES[BROWSER.language].suffix}": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True)
class Pages:
    """`files`: content type and content by path."""

    names: Names
    files: dict[str, tuple[str, bytes]]

    @staticmethod
    def load(names: Names, folder: Path = WEB) -> Pages:
        files = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix in TYPES and path.is_file() and path.stat().st_size <= MOST_BYTES:
                files[f"/web/{path.name}"] = (TYPES[path.suffix], path.read_bytes())
        return Pages(names, files)

    def answer(self, request: Request, cookies: Cookies) -> Response | None:
        """The response, or None for a request of the WebSocket, which the library looks at further."""
        host = request.headers.get_all("Host")
        if len(host) != 1 or not self.names.include(host_name(host[0])):
            return text_response(http.HTTPStatus.MISDIRECTED_REQUEST, "This hub has another name. Use the address it prints.")
        if request.method != "GET":
            return text_response(http.HTTPStatus.METHOD_NOT_ALLOWED, "This hub answers GET only.")
        path, _, query = request.path.partition("?")
        if path == WIRE:
            return None
        if path == "/":
            return self._page(request, query, host[0], cookies)
        if path == SESSION:
            return self._session(request, cookies)
        if path in self.files:
            return _response(http.HTTPStatus.OK, *self.files[path], host[0])
        return text_response(http.HTTPStatus.NOT_FOUND, "There is no such page here.")

    def _page(self, request: Request, query: str, host: str, cookies: Cookies) -> Response:
        try:
            given = parse_qs(query, keep_blank_values=True, max_num_fields=8)
        except ValueError:
            given = {}
        if "token" in given:
            cookie = cookies.cookie_for(given["token"][-1])
            name = ENTRY if cookie else ""
        else:
            known = cookies.known(request, DEVICE in given)
            cookie = cookies.cookie_for(known) if DEVICE in given else ""
            name = PAGE if known or any(given.get("pair", [])) else ""
        if not name:
            return text_response(
                http.HTTPStatus.FORBIDDEN,
                "The token is missing or wrong, or this browser keeps no cookies. Open the whole address that tapml hub prints.",
            )
        page = self.files.get(f"/web/{name}")
        if page is None:
            return text_response(http.HTTPStatus.NOT_FOUND, "This installation of TapML has no page. Install it again.")
        return _response(http.HTTPStatus.OK, *page, host, cookie)

    def _session(self, request: Request, cookies: Cookies) -> Response:
        given = request.headers.get_all("Authorization")
        kind, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        cookie = cookies.cookie_for(token) if kind == "Bearer" else ""
        if not cookie:
            return text_response(http.HTTPStatus.FORBIDDEN, "The token is missing or wrong.")
        return _response(http.HTTPStatus.OK, "text/plain; charset=utf-8", b"", "", cookie)


def host_name(host: str) -> str:
    """Of a Host header, without its port: "[::1]:8765" gives "::1"."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def as_device(request: Request) -> bool:
    """Whether a WebSocket is that of a paired device's page."""
    return request.path.partition("?")[2] == DEVICE


def same_origin(request: Request, scheme: str) -> bool:
    """Whether the page that asks, if it is one, came from this hub. A program sends no Origin."""
    origins, hosts = request.headers.get_all("Origin"), request.headers.get_all("Host")
    return not origins or origins == [f"{scheme}://{host}" for host in hosts]


def text_response(status: http.HTTPStatus, text: str) -> Response:
    return _response(status, "text/plain; charset=utf-8", text.encode() + b"\n", "")


def _response(status: http.HTTPStatus, kind: str, body: bytes, host: str, cookie: str = "") -> Response:
    """`host` has been found to be a name or an address of ours, and goes into the policy: not every browser takes 'self' for a
    WebSocket's address too."""
    sockets = f" ws://{host} wss://{host}" if host else ""
    policy = (
        f"default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src 'self'{sockets}; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = Headers({
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        "Connection": "close",
        "Cache-Control": "no-store",
        "Content-Security-Policy": policy,
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    })
    if cookie:
        headers["Set-Cookie"] = cookie
    return Response(status.value, status.phrase, headers, body)
