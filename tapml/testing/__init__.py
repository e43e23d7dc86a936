"""Checks that other packages call in their own tests. This module is imported on its own: `import tapml` does not load it.

    from tapml.testing import check_backend

    def test_my_engine():
        found = check_backend("my-engine")
        assert not found.refused, found.refused
"""

from __future__ import annotations

from tapml.testing.backend import Checked, check_backend
from tapml.testing.checking import BrokenRule

__all__ = ["BrokenRule", "Checked", "check_backend"]
