"""A module's buffers are afterwards what they were before: one place for everything that runs a model's own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def buffers_kept(module: torch.nn.Module) -> Iterator[None]:
    """While it lasts, the module's code may write to its buffers, resize them, or put others in their places; afterwards each is
    the tensor that it was, with its shape and content, also after an error. A buffer that nothing wrote to is not written either:
    it may be one that cannot be (expanded, or mapped from a file)."""
    homes = [(held, dict(held)) for part in module.modules() if isinstance(held := part.__dict__.get("_buffers"), dict)]
    before = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for held, was in homes:
            held.clear()
            held.update(was)
        with torch.no_grad():
            for buffer, content in before:
                if buffer.shape != content.shape:
                    buffer.resize_(content.shape)
                if not torch.equal(buffer, content):
                    buffer.copy_(content)
