"""Which operators depend on where in the text a token stands.

    positional(graphs, operators, length, positions)
                                                 names of operators that read a state, a value made of positions alone, or one
                                                 that spans the cache

An operator that only sees hidden values (a projection, a norm) computes the same thing at position 5 and 5000. One that reads
the key-value cache, a mask, a rotary table or the positions themselves does not; nor does one that reads attention scores, which
have an element for each position of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from tapml.operators.graph import Graph, Operator


def positional(graphs: Sequence[Graph], operators: Sequence[Operator], length: int, positions: str | None) -> frozenset[str]:
    """Of a decoder's graphs; `length` is that of the cache, `positions` the key of the input with positions. Values made of
    weights and constants alone are the same at every position, and do not count. Where the model is as wide as the cache is long,
    hidden values count too: what is recorded for nothing then costs little."""
    found: set[str] = set()
    for graph in graphs:
        neutral = {p.name for p in graph.weights}
        placed = {p.name for p in graph.inputs if p.key == positions} | {p.name for p in graph.states}
        spanning: set[str] = set()
        kept = set(graph.mutations.values())
        for operator in (o for o in operators if o.graph == graph.name):
            reads = set(operator.inputs) - neutral
            if reads & (placed | spanning):
                found.add(operator.name)
                spanning.update(name for name in operator.outputs if length in graph.specs[name].shape)
            if not reads:
                neutral.update(operator.outputs)
            elif reads <= placed:
                placed.update(operator.outputs)
            placed |= kept & set(operator.outputs)
    return frozenset(found)
