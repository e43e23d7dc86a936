"""The kernel cache: `$TAPML_CACHE/kernels`, one file a body and target, named by a hash of all that its content depends on.

    cache = KernelCache(folder, target)
    result = cache.get(body)            None if it is not there, or damaged
    cache.put(body, result)             only what compiling again would give again

The name's hash covers the body, the target, the versions of the compiler and the sources of this package, so nothing is ever
outdated. Files are written beside their place and renamed, so several processes can share the folder. Each begins with a seal
(`tapml.cache.seals`): what this installation did not make itself is compiled again. What was used longest ago makes room
(`tapml.cache.bounded`). Imports no tvm.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from functools import cache
from pathlib import Path

from tapml.cache.bounded import bounded, limit_of_environment
from tapml.cache.seals import seal, sound
from tapml.compile.result import Result
from tapml.operators.graph import Body
from tapml.targets.target import Target
from tapml.whole_file import write_whole

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCES = (
    "compile/*.py", "languages/*.py", "kernels.py",
    *(f"operators/{name}.py" for name in ("decompose", "from_fx", "graph", "normalise", "to_fx")),
)
_MUTATIONS = "compile/mutations.py"  # faults that are put in on purpose: part of the key only where one is


@cache
def toolchain() -> str:
    """Versions of the compiler, and a hash of TapML's own part in it."""
    text = hashlib.blake2b(digest_size=16)
    for pattern in _SOURCES:
        for path in sorted(p for p in _PACKAGE.glob(pattern) if p != _PACKAGE / _MUTATIONS):
            text.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    versions = [f"{name} {_version(name)}" for name in ("apache-tvm", "apache-tvm-ffi", "torch")]
    return ", ".join([*versions, f"tapml {text.hexdigest()}"])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


class KernelCache:
    """Results of compiling for one target, in a folder that may hold those of others too."""

    def __init__(self, folder: Path, target: Target, mutation: str | None = None) -> None:
        self.folder = folder
        self._bound = bounded(folder, limit_of_environment())
        self._prefix = f"{toolchain()}\n{target.key}\n"
        if mutation is not None:
            self._prefix += f"{mutation} {_digest((_PACKAGE / _MUTATIONS).read_text())}\n"

    def path(self, body: Body) -> Path:
        text = self._prefix + json.dumps(body.to_json(), sort_keys=True, separators=(",", ":"))
        name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def get(self, body: Body) -> Result | None:
        path = self.path(body)
        try:
            found, _, payload = path.read_text().partition("\n")
            right = sound(path.name, payload.encode(), bytes.fromhex(found) if _is_hex(found) else b"")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("kernel cache: %s cannot be read (%s); compiling again", path, error)
            return None
        if not right:
            logger.warning("kernel cache: %s is damaged, or was not made here; compiling again", path)
            return None
        self._bound.used(path)
        return Result.from_json(json.loads(payload)).from_cache(body.signature)

    def put(self, body: Body, result: Result) -> None:
        """Keeps a result. A folder that cannot be written costs a warning and compiling again, nothing else."""
        if not result.deterministic:
            return
        payload = json.dumps(result.to_json(), separators=(",", ":"))
        path = self.path(body)
        if not self._bound.fits(len(payload)):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            write_whole(path, f"{seal(path.name, payload.encode()).hex()}\n{payload}")
            self._bound.added(len(payload))
        except OSError as error:
            logger.warning("kernel cache: %s cannot be written (%s); its result is not kept", path, error)


def _is_hex(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def _digest(payload: str) -> str:
    return hashlib.blake2b(payload.encode(), digest_size=16).hexdigest()
