"""A Hugging Face id, such as "organisation/name": from the local cache first, then from the hub."""

from __future__ import annotations

import re
from pathlib import Path

from tapml.errors import ModelError, message_of
from tapml.source.licence import CARD
from tapml.source.model import LoadedModel
from tapml.source.readers.directory import from_directory
from tapml.source.readers.reader import Reader, Request

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def downloaded(spec: str) -> Path:
    """The model's directory in the local Hugging Face cache. Raises ModelError where it is not there and cannot be downloaded."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", CARD]
    try:
        return Path(huggingface_hub.snapshot_download(spec, allow_patterns=wanted, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        return Path(huggingface_hub.snapshot_download(spec, allow_patterns=wanted, etag_timeout=5))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise ModelError(
            f"No such model: {spec} is neither a path here nor in the local Hugging Face cache, and could not be downloaded "
            f"({message_of(error)}). Check the name, or download the model and give its directory."
        ) from error


def _means(text: str) -> bool:
    like_a_path = text.startswith((".", "~")) or text.endswith((".gguf", ".py")) or Path(text).exists()
    return _ID.fullmatch(text) is not None and not like_a_path


def _read(request: Request) -> LoadedModel:
    return from_directory(downloaded(request.text), request.text.rpartition("/")[2], request.text, request.dtype)


READER = Reader("a Hugging Face id", _means, _read)
