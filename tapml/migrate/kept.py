"""What a stage found, kept in the run as one JSON file: what is kept replaces what was there.

    keep_json(run, "targets/opencl/health.json", data, "numeric health")
    data = kept_json(run, name, belongs_to, "Run tapml health again to replace it.")
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from tapml import strict
from tapml.carving.folder import RunFolder
from tapml.errors import RunError
from tapml.inside import is_file, path_in, read_file
from tapml.whole_file import write_whole

logger = logging.getLogger(__name__)

_LARGEST = 2**26  # bytes of a file that is read


def keep_json(run: RunFolder, name: str, data: dict[str, Any], what: str) -> None:
    """A folder that cannot be written costs a warning."""
    path = run.path / name
    try:
        path_in(run.path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(data, separators=(",", ":")))
    except (OSError, RunError) as error:
        logger.warning("%s: %s cannot be written (%s); the results are not kept", what, path, error)


def kept_json(run: RunFolder, name: str, belongs_to: Callable[[dict[str, Any]], str], again: str) -> dict[str, Any] | None:
    """What is kept; None when nothing is, or of a run that lay here before. `belongs_to` gives the digest of its run, and raises
    what `strict` does for data that readers could not read. Raises RunError when the file is damaged, which ends with `again`."""
    if not is_file(run.path, name):
        return None
    path = run.path / name
    try:
        data = strict.fields(strict.parse_small(read_file(run.path, name, most=_LARGEST)))
        found = belongs_to(data)
    except strict.UNREADABLE as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}). {again}") from error
    return data if found == run.digest else None
