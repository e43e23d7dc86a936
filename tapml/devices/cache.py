"""Where TapML keeps what it can make again: compiled kernels and the like."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$TAPML_CACHE if set, else `tapml` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache). It need not exist yet."""
    own = os.environ.get("TAPML_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tapml"
