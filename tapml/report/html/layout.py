"""Where each operator stands in the heat map: layers down, operators across, whatever is in no layer in a row of its own.

    grid = lay_out(operators)             of one graph, in execution order
    grid.rows[3], grid.columns[5]         Row("layers.1", "1"), Column("self_attn", "q_proj")
    grid.places[0]                        (3, 5): row and column of the first operator; column None: the whole row

A layer is what has a number in its name with something behind it: "layers.3.self_attn.q_proj" is the column
"self_attn.q_proj" of the row "layers.3". The order of columns follows the order of execution in every layer. An operator that
is in no layer stands above the layers when some layer still comes after it, and below them when none does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LAYER = re.compile(r"^((?:[^.]+\.)*?\d+)\.(.+)$")


@dataclass(frozen=True)
class Row:
    """`name` is the layer's path ("layers.3"), or the operator's own name for one in no layer; `layer` its number, None for none;
    `label` is what to write beside it."""

    name: str
    label: str
    layer: int | None


@dataclass(frozen=True)
class Column:
    """`group` is the part of the layer that the operator is in ("self_attn"; "" for none), `label` the rest of its name."""

    group: str
    label: str


@dataclass(frozen=True)
class Grid:
    """`places` has (row, column) for each operator, in the order given; column None is the whole row."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    places: tuple[tuple[int, int | None], ...]


def lay_out(names: Sequence[str]) -> Grid:
    """The grid of one graph's operators, given by name ("decode/layers.3.self_attn.q_proj") in execution order."""
    split = [_split(name.partition("/")[2] or name) for name in names]
    rows = _rows([(layer, rest is not None) for layer, rest in split])
    sequences: dict[str, list[str]] = {}
    for layer, rest in split:
        if rest is not None:
            sequences.setdefault(layer, []).append(rest)
    columns = _merged(list(sequences.values()))
    row_of = {key: k for k, key in enumerate(rows)}
    column_of = {name: k for k, name in enumerate(columns)}
    places = tuple((row_of[layer, rest is not None], None if rest is None else column_of[rest]) for layer, rest in split)
    stacks = {_stack(name) for name in sequences}
    return Grid(
        tuple(_row(name, is_layer, len(stacks) == 1) for name, is_layer in rows),
        tuple(_column(name) for name in columns),
        places,
    )


def _split(name: str) -> tuple[str, str | None]:
    """(layer, name within it), or (name, None) for an operator in no layer."""
    found = _LAYER.match(name)
    if found is None:
        return name, None
    layer, rest = found.groups()
    # A cache is called by its layer too ("cache_update.keys_3"), which would make a column of each.
    return layer, re.sub(rf"(cache_update\.\w+)_{layer.rpartition('.')[2]}\b", r"\1", rest)


def _stack(layer: str) -> str:
    """What the layers are called without their number."""
    return layer.rpartition(".")[0]


def _rows(keys: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Rows from top to bottom, as (name, whether it is a layer); `keys` are those of the operators in order. A layer and an
    operator in no layer may have the same name."""
    different = list(dict.fromkeys(keys))
    last = {_stack(name): k for k, (name, is_layer) in enumerate(different) if is_layer}
    ordered: list[tuple[str, bool]] = []
    first: dict[str, int] = {}
    current: str | None = None
    for k, (name, is_layer) in enumerate(different):
        if is_layer:
            current = _stack(name)
            first.setdefault(current, len(ordered))
            ordered.append((name, True))
        elif current is not None and last[current] > k:
            ordered.insert(first[current], (name, False))
            first = {stack: place + (place >= first[current]) for stack, place in first.items()}
        else:
            ordered.append((name, False))
    return ordered


def _merged(sequences: Sequence[Sequence[str]]) -> list[str]:
    """One order that holds all sequences, each in its own order as far as they agree: a new name goes behind the name that it
    follows in its sequence."""
    merged: list[str] = []
    for sequence in sequences:
        place = 0
        for name in sequence:
            if name in merged:
                place = merged.index(name) + 1
            else:
                merged.insert(place, name)
                place += 1
    return merged


def _row(name: str, is_layer: bool, only_stack: bool) -> Row:
    if not is_layer:
        return Row(name, name, None)
    number = name.rpartition(".")[2]
    return Row(name, number if only_stack else name, int(number))


def _column(name: str) -> Column:
    group, dot, label = name.partition(".")
    return Column(group, label) if dot and not label.isdecimal() else Column("", name)
