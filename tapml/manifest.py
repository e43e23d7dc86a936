"""Digests of content, and the seal of a manifest that holds those of all other files beside it.

    digest(data)          blake2b of bytes, 32 hexadecimal digits; of a file: `tapml.cache.folder.file_digest`
    seal(manifest)        of what the manifest holds itself, under its key SEAL
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"  # the key of the manifest's own digest in it


def digest(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def seal(manifest: Mapping[str, Any]) -> str:
    """The digest of a manifest's own content: it holds those of all other files, and has no file that holds its own."""
    rest = {name: value for name, value in manifest.items() if name != SEAL}
    return digest(json.dumps(rest, sort_keys=True).encode())
