"""What a driver made of kernels, kept in the cache folder for the next process that loads them.

    kept = Binaries("opencl")
    data = kept.get(digest)            bytes, or None where there is nothing that this installation put there
    kept.put(digest, data)

Loading binary code is as safe as the file it comes from: each has this installation's seal (`tapml.cache.seals`). Whatever fails
here costs time and nothing else, so nothing is raised: what cannot be read is made again, what cannot be written is not kept.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tapml.cache.bounded import bounded, limit_of_environment
from tapml.cache.folder import cache_folder
from tapml.cache.seals import BYTES, seal, sound
from tapml.errors import UsageError
from tapml.private import private_folder
from tapml.whole_file import write_whole

logger = logging.getLogger(__name__)


class Binaries:
    """A folder of the cache. Names are digests of all that the content depends on: text, options, driver, device."""

    def __init__(self, folder: str) -> None:
        self._name = folder

    def get(self, name: str) -> bytes | None:
        try:
            path = self._folder() / name
            made = path.read_bytes()
            if not sound(f"{self._name}/{name}", made[:-BYTES], made[-BYTES:]):
                return None
            bounded(path.parent, limit_of_environment()).used(path)
        except (OSError, UsageError):
            return None
        return made[:-BYTES]

    def put(self, name: str, data: bytes) -> None:
        try:
            folder = self._folder()
            bound = bounded(folder, limit_of_environment())
            if not bound.fits(len(data)):
                return
            write_whole(folder / name, data + seal(f"{self._name}/{name}", data))
            bound.added(len(data))
        except (OSError, UsageError) as error:
            logger.info("what the driver made of a kernel is not kept: %s", error)

    def _folder(self) -> Path:
        return private_folder(cache_folder() / self._name, "the cache folder")
