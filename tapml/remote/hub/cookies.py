"""What a browser is known by once it has opened the hub's page: a cookie in place of the token, which stands in no address then.

    cookies = Cookies(tokens, "https", 8765, fingerprint)
    cookies.cookie_for(token)                  what to set for whoever opened the page with it; "" if it opens nothing
    cookies.known(request, device=False)       the cookie that this request brings, "" if none that is good
    cookies.credential(request, device=False)  the same for a WebSocket, where more is asked of it

There are two cookies, since a browser may be the owner's and, in another tab, a paired device. The owner's is no token: it opens
the roles of a page (watch, and be a device), runs nothing on devices, and is gone with the browser. A paired device's is its
own token, kept for a month. Neither can be read by a script (HttpOnly), nor is sent along from another site's page (SameSite).
On a WebSocket a cookie counts only with an Origin, and only with the hub's own: browsers add it, and let no page choose it.
"""

from __future__ import annotations

from dataclasses import dataclass

from websockets.http11 import Request

from tapml.remote.hub.tokens import Tokens

DEVICE_SECONDS = 30 * 86400


@dataclass(frozen=True)
class Cookies:
    """`scheme` and `port` are the hub's own; `fingerprint` may follow a token, as in the hub's address."""

    tokens: Tokens
    scheme: str
    port: int
    fingerprint: str = ""

    def cookie_for(self, token: str) -> str:
        """The value of a Set-Cookie header."""
        token = self.plain(token)
        if self.tokens.opens("watch", token):
            given, kept = f"{self._name(False)}={self.tokens.page_key}", ""
        elif self.tokens.opens("device", token):
            given, kept = f"{self._name(True)}={token}", f"; Max-Age={DEVICE_SECONDS}"
        else:
            return ""
        secure = "; Secure" if self.scheme == "https" else ""
        return f"{given}; Path=/; HttpOnly; SameSite=Strict{secure}{kept}"

    def plain(self, token: str) -> str:
        """Without the certificate's fingerprint, which belongs to the address rather than the token."""
        return token.removesuffix(f".{self.fingerprint}") if self.fingerprint else token

    def known(self, request: Request, device: bool) -> str:
        """The good cookie that this request brings, "" without one: the first of its name that is good, since a page on another
        port may have set one besides. A paired device's may be given to `cookie_for`, for another month."""
        role = "device" if device else "watch"
        for header in request.headers.get_all("Cookie"):
            for one in header.split(";"):
                name, _, value = one.strip().partition("=")
                if name == self._name(device) and value.isascii() and self.tokens.opens_page(role, value):
                    return value
        return ""

    def credential(self, request: Request, device: bool) -> str:
        """The cookie's value, for `Tokens`; "" without one, and for any page but the hub's own."""
        origins = request.headers.get_all("Origin")
        own = [f"{self.scheme}://{host}" for host in request.headers.get_all("Host")]
        return self.known(request, device) if origins and origins == own else ""

    def _name(self, device: bool) -> str:
        """Cookies know no ports, so the hub's is part of the name. With the prefix no other host of the domain can set it."""
        prefix = "__Host-" if self.scheme == "https" else ""
        return f"{prefix}tapml-{self.port}{'-device' if device else ''}"
