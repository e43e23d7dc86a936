"""Who may do what at a hub: its secret, the tokens of paired devices, and pairing codes.

    tokens = Tokens.kept(folder)             the same secret at each start, made at the first
    tokens.opens("client", text)             whether this token opens that role
    tokens.opens_page("watch", cookie)       the same for what the hub's page is known by
    tokens.holder(text)                      which token that is, for names and limits: "" for the secret
    pairing = tokens.pairing(now)            a code that one device may use once, within five minutes
    tokens.redeem(pairing.code, now, place)  its own token, or a PairingRefused; `place`: the address it came from

The secret opens every role. A device that came with a pairing code gets a token of its own, which opens the role "device" only
and is derived from the secret: nothing is stored for it, it survives a restart of the hub, and a new secret (`--new-token`) ends
all of them. A code is short enough to be typed (about 49 bits): whoever could try a thousand a second would meet one of
`MOST_CODES` within its five minutes once in 200 million times. After `MOST_WRONG` wrong ones within a minute an address pairs
nothing for a minute; others do, so that a stranger cannot keep a phone out. Times are seconds of one monotonic clock, passed in.
"""

from __future__ import annotations

import hmac
import os
import secrets
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from tapml.errors import UsageError
from tapml.private import not_private, private_folder

SECRET_BYTES = 32
ID_BYTES = 8
PAIRING_SECONDS = 300.0
MOST_CODES = 8
MOST_WRONG = 5
WRONG_SECONDS = 60.0
LOCKED_SECONDS = 60.0

# Addresses whose wrong codes are remembered; beyond it the one that was wrong longest ago is forgotten.
MOST_PLACES = 4096

# No 0 and O, 1, I and L: they are read off a screen.
ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE_LENGTH = 10

SECRET_FILE = "token"


class PairingRefused(Exception):
    """The code is wrong, used or old, or too many wrong ones came. The message is for the person who typed it."""


@dataclass(frozen=True)
class Pairing:
    """A pairing code as people read it ("K7QF2-M9XTD"), and for how many seconds it is good."""

    code: str
    seconds: float


@dataclass
class _Guesser:
    """An address from which wrong codes came: when, and until when it has to wait."""

    wrong: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_WRONG))
    locked_until: float = float("-inf")


class Tokens:
    """See the module's docstring."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self._codes: dict[str, float] = {}
        self._guessers: dict[str, _Guesser] = {}

    @staticmethod
    def kept(folder: Path, new: bool = False) -> Tokens:
        """With the secret that `folder` keeps, readable for its owner only. It is made if it is not there, or `new` is asked for.
        Raises UsageError when the folder cannot be used, and for a file that others can read or write."""
        path = folder / SECRET_FILE
        try:
            private_folder(folder, "the hub's folder")
            kept = path.exists() and not new
            wrong = not_private(path) if kept else ""
            if wrong:
                raise UsageError(
                    f"The hub's token file {path} {wrong}: who has read it can use your devices. Fix it with chmod 600 {path}, "
                    "and make another token with --new-token if you do not trust them."
                )
            secret = path.read_text("ascii", errors="replace").strip() if kept else ""
            if len(secret) < SECRET_BYTES or not set(secret) <= _URLSAFE:
                secret = secrets.token_urlsafe(SECRET_BYTES)
                write_private(path, secret.encode() + b"\n")
        except OSError as error:
            raise UsageError(
                f"The hub's state cannot be kept in {folder}: {error.strerror or error}. Choose another folder with --state."
            ) from error
        return Tokens(secret)

    def opens(self, role: str, token: str) -> bool:
        """In a time that does not depend on how much of the token is right."""
        whole = hmac.compare_digest(token.encode(), self.secret.encode())
        return whole or (role == "device" and self._of_device(token))

    def opens_page(self, role: str, cookie: str) -> bool:
        """For a browser that opened the page with a token: what it has of that opens no client's role."""
        owner = hmac.compare_digest(cookie.encode(), self.page_key.encode())
        return role in ("device", "watch") and (owner or (role == "device" and self._of_device(cookie)))

    @property
    def page_key(self) -> str:
        """What the owner's browser is given in the place of the secret."""
        return f"p-{hmac.digest(self.secret.encode(), b'page', 'sha256').hex()}"

    def holder(self, token: str) -> str:
        """A name for a good token, which does not give it away: "" for the secret and the page's key."""
        return token.rpartition("-")[0] if self._of_device(token) else ""

    def device_token(self) -> str:
        """A new token for one device."""
        identity = secrets.token_hex(ID_BYTES)
        return f"d-{identity}-{self._seal(identity)}"

    def pairing(self, now: float) -> Pairing:
        """A new code. Of many that were not used the oldest are void."""
        self._forget_old(now)
        while len(self._codes) >= MOST_CODES:
            del self._codes[next(iter(self._codes))]
        code = "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))
        self._codes[code] = now + PAIRING_SECONDS
        return Pairing(f"{code[: CODE_LENGTH // 2]}-{code[CODE_LENGTH // 2 :]}", PAIRING_SECONDS)

    def redeem(self, text: str, now: float, place: str = "") -> str:
        """The token for the device that typed this code, which is void from now on. Raises PairingRefused."""
        guesser = self._guessers.get(place)
        if guesser is not None and now < guesser.locked_until:
            wait = round(guesser.locked_until - now) or 1
            raise PairingRefused(f"Too many wrong pairing codes came from here. Wait {wait} s, then take a new one from the hub.")
        self._forget_old(now)
        given = "".join(letter for letter in text.upper() if letter.isalnum())
        found = None
        for code in self._codes:
            if hmac.compare_digest(code.encode(), given.encode()):
                found = code
        if found is None:
            self._note_wrong(place, now)
            raise PairingRefused(
                "This pairing code is wrong, was used already, or is older than five minutes. Take a new one from the hub."
            )
        del self._codes[found]
        return self.device_token()

    def _note_wrong(self, place: str, now: float) -> None:
        guesser = self._guessers.pop(place, None) or _Guesser()
        self._guessers[place] = guesser
        guesser.wrong.append(now)
        if len(guesser.wrong) == MOST_WRONG and now - guesser.wrong[0] <= WRONG_SECONDS:
            guesser.locked_until = now + LOCKED_SECONDS
            guesser.wrong.clear()
        if len(self._guessers) > MOST_PLACES:
            del self._guessers[next(iter(self._guessers))]

    def _forget_old(self, now: float) -> None:
        self._codes = {code: until for code, until in self._codes.items() if now < until}

    def _seal(self, identity: str) -> str:
        return hmac.digest(self.secret.encode(), b"device " + identity.encode(), "sha256").hex()

    def _of_device(self, token: str) -> bool:
        kind, _, rest = token.partition("-")
        identity, _, seal = rest.partition("-")
        return hmac.compare_digest(seal.encode(), self._seal(identity).encode()) and kind == "d"


_URLSAFE = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def write_private(path: Path, data: bytes) -> None:
    """The whole file or none of it, readable for its owner only at every moment."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
