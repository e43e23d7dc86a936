"""All that a report shows, as one JSON object: the page's logic reads this and nothing else.

    data, kernels = report_data(run, sides, ...)      `kernels` are still to be put in, see `page.py`

Operators, cases and strings are referred to by their place; columns over operators have one item each; numbers are rounded to
four digits. `js/data.js` is where the page reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tapml
from tapml.carving.detokenizer import Detokenizer
from tapml.carving.folder import RunFolder
from tapml.diagnose.health.result import kept_health
from tapml.migrate.invariance import kept_invariance
from tapml.migrate.workbench import Progress
from tapml.report.html.bodies import lines, source_lines
from tapml.report.html.cases import case_data
from tapml.report.html.evidence import explained
from tapml.report.html.kernels import KernelTable
from tapml.report.html.layout import lay_out
from tapml.report.html.numbers import Strings
from tapml.report.html.sides import Shared, Side, pictures, side_data, source_data
from tapml.report.html.snippets import Snippets
from tapml.report.html.story import story
from tapml.report.html.unchecked import unchecked


def report_data(
    run: RunFolder, sides: Sequence[Side], other: RunFolder | None, left_out: Sequence[str], progress: Progress | None = None
) -> tuple[dict[str, Any], KernelTable]:
    """The data without "kernels", and the table of kernels. `other` is the run that this one is compared with."""
    strings, code = Strings(), Snippets(run)
    shared = Shared(
        {o.name: k for k, o in enumerate(run.operators)}, {c.id: k for k, c in enumerate(run.cases)}, strings, KernelTable()
    )
    found = [_side(side, shared) for side in sides]
    signatures = {signature: k for k, signature in enumerate(run.bodies)}
    data = {
        "made_by": tapml.__version__,
        "run": _facts(run),
        "other": None if other is None else _facts(other) | _differences(run, other),
        "graphs": [g.name for g in run.graphs],
        "grids": _grids(run),
        "operators": _operators(run, signatures, strings, code),
        "signatures": [_signature(run, signature) for signature in run.bodies],
        "cases": case_data(run, progress),
        "sides": [source_data(run, shared) | {"health": kept_health(run, None), "explained": {}, "pictures": {}}, *found],
        "unchecked": unchecked(run, sides, left_out),
        "snippets": code.all,
        "strings": strings.all,
    }
    return data, shared.kernels


def _side(side: Side, shared: Shared) -> dict[str, Any]:
    migration = side.records.migration
    own = side.number == 0
    return side_data(side, shared) | {
        "story": None if migration is None else story(side.run, migration, shared.operators, Detokenizer(side.run).text),
        "pictures": pictures(side, shared),
        "explained": explained(side.records.folder, shared.operators, shared.kernels, side.injected) if own else {},
        "health": kept_health(side.run, side.records.target, side.injected) if own else None,
        "invariance": kept_invariance(side.run, side.records.target, side.injected) if own else None,
    }


def _facts(run: RunFolder) -> dict[str, Any]:
    result, model = run.manifest["result"], run.manifest["model"]
    return {
        "path": str(run.path), "name": model["name"], "digest": run.digest, "version": run.manifest["version"], "kind": run.kind,
        "dtype": run.manifest["dtype"], "decoder": run.manifest["decoder"], "operators": len(run.operators),
        "signatures": len(run.bodies), "cases": len(run.cases), "nodes": result.get("nodes"), "calls": result.get("calls", {}),
        "weights": result.get("weights") or run.manifest.get("weights") or None, "calls_seen": result.get("calls_seen"),
        "prompts": [p.text for p in run.prompts],
    }  # fmt: skip


def _differences(run: RunFolder, other: RunFolder) -> dict[str, Any]:
    """How far the operators of two runs are the same."""
    mine, theirs = ({o.name: o.signature for o in r.operators} for r in (run, other))
    return {
        "only_here": [name for name in mine if name not in theirs],
        "only_there": [name for name in theirs if name not in mine],
        "changed": [name for name in mine if name in theirs and mine[name] != theirs[name]],
        "same_run": run.digest == other.digest,
    }


def _grids(run: RunFolder) -> list[dict[str, Any]]:
    """One a graph: rows [[label, layer or None]], columns [[group, label]], and [row, column] for each of its operators."""
    found = []
    for graph in run.graphs:
        grid = lay_out([o.name for o in run.operators if o.graph == graph.name])
        found.append({
            "rows": [[row.label, row.layer] for row in grid.rows],
            "columns": [[column.group, column.label] for column in grid.columns],
            "places": [list(place) for place in grid.places],
        })
    return found


def _operators(run: RunFolder, signatures: dict[str, int], strings: Strings, code: Snippets) -> dict[str, list[Any]]:
    graphs = {g.name: k for k, g in enumerate(run.graphs)}
    nodes = {g.name: {n.name: n for n in g.nodes} for g in run.graphs}
    return {
        "name": [o.name for o in run.operators],
        "graph": [graphs[o.graph] for o in run.operators],
        "kind": [strings[o.kind] for o in run.operators],
        "signature": [signatures[o.signature] for o in run.operators],
        "module": [strings[o.module] for o in run.operators],
        "source": [[strings[text] for text in source_lines(nodes[o.graph][n] for n in o.nodes)] for o in run.operators],
        "code": [code.of(nodes[o.graph][n] for n in o.nodes) for o in run.operators],
        "inputs": _origins(run),
    }


def _origins(run: RunFolder) -> list[list[Any]]:
    """Where each input of each operator comes from: the place of the operator that makes it, or "weight KEY" and the like."""
    found: list[list[Any]] = []
    makers: dict[str, dict[str, int | str]] = {
        g.name: {p.name: f"{p.role} {p.key}" for p in g.placeholders} for g in run.graphs
    }
    for place, operator in enumerate(run.operators):
        known = makers[operator.graph]
        found.append([known.get(name, name) for name in operator.inputs])
        known.update(dict.fromkeys(operator.outputs, place))
    return found


def _signature(run: RunFolder, signature: str) -> dict[str, Any]:
    body = run.bodies[signature]
    return {
        "id": signature, "kind": body.kind, "roles": list(body.roles), "inputs": [str(spec) for spec in body.inputs],
        "outputs": [[name, str(spec)] for name, spec in zip(body.outputs, body.output_specs, strict=True)],
        "lines": [list(line) for line in lines(body)],
    }  # fmt: skip


