"""Whose a device's name is: the token's that first had it, for as long as the hub runs.

    names = Naming()
    names.may_have("bench", holder)        `holder` says which token: "" is the hub's own
    names.note("bench", holder)            a device with that token goes by that name now

Clients ask for a device by its name, and send it their work. If any device could have the name of one that is away, a paired
phone could put itself in the place of the owner's agent. What is remembered is bounded for each token, so that nobody can make
the hub forget the names of others, and for tokens: of many the one that was seen longest ago is forgotten, never the hub's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_NAMES = 1024
MOST_NAMES_OF_TOKEN = 16
MOST_TOKENS = 256


@dataclass
class Naming:
    """See the module's docstring."""

    _names: dict[str, dict[str, None]] = field(default_factory=dict)

    def may_have(self, name: str, holder: str) -> bool:
        """Not if it is another token's. The hub's own may have any: its owner could void all others."""
        return not holder or all(name not in names for other, names in self._names.items() if other != holder)

    def note(self, name: str, holder: str) -> None:
        for other, theirs in self._names.items():
            if other != holder:
                theirs.pop(name, None)
        names = self._names.pop(holder, {})
        self._names[holder] = names  # the last seen is the last
        names.pop(name, None)
        names[name] = None
        if len(names) > (MOST_NAMES_OF_TOKEN if holder else MOST_NAMES):
            del names[next(iter(names))]
        if len(self._names) > MOST_TOKENS:
            del self._names[next(one for one in self._names if one)]
