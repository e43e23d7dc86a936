"""A body as text: JSON with a line a node, the same text for equal bodies.

    text = json_text(body)
    body = body_of(text)
"""

from __future__ import annotations

import json

from tapml import strict
from tapml.operators.graph import Body


def json_text(body: Body) -> str:
    """Whoever changes one number of it changes one line."""
    data = body.to_json()
    lines = [f' "{key}": {json.dumps(data[key])}' for key in ("kind", "inputs", "roles", "outputs")]
    nodes = ",\n".join(f"  {json.dumps(node)}" for node in data["nodes"])
    lines.insert(3, f' "nodes": [\n{nodes}\n ]' if nodes else ' "nodes": []')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def body_of(text: str) -> Body:
    """Raises one of `tapml.strict.UNREADABLE` for what is no such text."""
    return Body.from_json(strict.parse_small(text))
