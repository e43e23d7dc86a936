"""What the fault bench found, as data: per fault and method, per class, and in total.

    result.rows[3].faults[0].findings["tapml"].detected
    result.totals()["random"].stages

A fault counts as detected by a method if the method complains of it and did not complain of the same thing on the clean model: an
alarm that is always there tells nothing. An operator that is named is right if the fault was put into it; a fault that is in no
operator (state handed over wrongly) has no right operator, and is not counted there. Only TapML names stages.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tapml.diagnose.faults.fault import FaultClass

Method = Literal[
    "tapml", "random", "backendbench", "flashinfer_bench", "test_backend_ops", "debug_compare", "prefix", "end_to_end",
]  # fmt: skip

METHODS: dict[Method, str] = {
    "tapml": "TapML",
    "random": "N(0,1) inputs",
    "backendbench": "BackendBench",
    "flashinfer_bench": "flashinfer-bench",
    "test_backend_ops": "test-backend-ops",
    "debug_compare": "debug_compare",
    "prefix": "prefix bisection",
    "end_to_end": "end to end",
}

RULES: dict[Method, str] = {
    "tapml": "each rewritten operator on its recorded calls; where all pass, the whole model on the target and a bisection; then "
    "triage and the minimiser",
    "random": "each rewritten operator on inputs and weights drawn from N(0,1), within the measured bound",
    "backendbench": "the rule of meta-pytorch/BackendBench: each rewritten operator on inputs and weights uniform in [0, 1), "
    "against PyTorch in the same dtype, rtol and atol 1e-2",
    "flashinfer_bench": "the rule of flashinfer-ai/flashinfer-bench: each rewritten operator in three trials on inputs and "
    "weights from N(0,1), against PyTorch in the same dtype, finite and within 1e-2 absolute or relative",
    "test_backend_ops": "the rule of llama.cpp's test-backend-ops: each rewritten operator on inputs and weights uniform in "
    "[-1, 1), against PyTorch on the processor, normalised mean square error 1e-7 (5e-4 with products of matrices)",
    "debug_compare": "the rule of MLC-LLM's debug_compare: the whole model on the target, each function once, its last output, "
    "rtol 1e-2, atol 1, stop at the first mismatch",
    "prefix": "the rule of google-ai-edge/litert-samples#307: the outputs of each graph within rtol and atol 1e-2; else a binary "
    "search over prefixes for the first cut with a value that is off by more than 1e-2 of its largest magnitude",
    "end_to_end": "greedy tokens and logits of every prompt, within the measured bound",
}


@dataclass(frozen=True)
class Diagnosis:
    """What a method says is wrong. `operator` and `stage` are the ones that it names, None for none; `elements` counts those of
    all inputs of the failing call as it would be passed on, weights among them (TapML: after minimising), None where there is
    nothing to pass on but the whole model."""

    operator: str | None
    elements: int | None
    reason: str
    stage: str | None = None


@dataclass(frozen=True)
class Found:
    """What a method said of one fault (see `Diagnosis`), and whether that is right: `operator_right` and `stage_right` are None
    where there is nothing to be right about. `applies` is False where the method's rule has nothing to look at, and `reason` says
    why: that counts neither as found nor as missed. `executions` counts the runs of prefixes on the target, of the method that
    has them."""

    detected: bool
    operator: str | None
    operator_right: bool | None
    stage: str | None
    stage_right: bool | None
    elements: int | None
    seconds: float
    reason: str
    applies: bool = True
    executions: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Found:
        return Found(**data)


@dataclass(frozen=True)
class Fault:
    """A class put into one operator. `findings` is empty where it ended the process, and `note` says so. `latent` says that
    nothing of what was recorded changes by a bit: None where that was not asked, because somebody detected it, or because the
    fault is in no operator."""

    operator: str
    text: str
    findings: dict[Method, Found]
    latent: bool | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "operator": self.operator, "text": self.text, "latent": self.latent, "note": self.note,
            "findings": {method: found.to_json() for method, found in self.findings.items()},
        }  # fmt: skip

    @staticmethod
    def from_json(data: dict[str, Any]) -> Fault:
        findings: dict[Method, Found] = {method: Found.from_json(found) for method, found in data["findings"].items()}
        return Fault(data["operator"], data["text"], findings, data["latent"], data["note"])


@dataclass(frozen=True)
class Row:
    """One class: its facts (`FaultClass.to_json`), how many operators it can be put into, and the faults that were tried. `why`
    says why there are none."""

    fault: dict[str, Any]
    sites: int
    faults: tuple[Fault, ...]
    why: str = ""

    @property
    def name(self) -> str:
        return str(self.fault["name"])

    @property
    def label(self) -> str:
        return f"{self.fault['number']} {self.fault['name']}"

    def to_json(self) -> dict[str, Any]:
        return {**self.fault, "sites": self.sites, "why": self.why, "faults": [f.to_json() for f in self.faults]}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Row:
        facts = {k: v for k, v in data.items() if k not in ("sites", "why", "faults")}
        return Row(facts, data["sites"], tuple(Fault.from_json(f) for f in data["faults"]), data["why"])

    def count(self, method: Method, what: Callable[[Found], bool | None]) -> tuple[int, int]:
        """(how many, of how many) of this class's faults; faults for which `what` is None are left out, and one that ended the
        process counts as no."""
        found = [what(f.findings[method]) if method in f.findings else False for f in self.faults]
        return sum(found_one is True for found_one in found), sum(found_one is not None for found_one in found)


@dataclass(frozen=True)
class Clean:
    """What a method said of the clean model: alarms (operators, or "the whole model") among `checked` things, all false."""

    checked: int
    alarms: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"checked": self.checked, "alarms": list(self.alarms), "seconds": self.seconds}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Clean:
        return Clean(data["checked"], tuple(data["alarms"]), data["seconds"])


@dataclass(frozen=True)
class Totals:
    """Of one method over all faults. Pairs are (how many, of how many); `classes` counts those of which every fault was
    detected, among those tried. `elements` is the median of the reproducers, None where there are none; `false_alarms` of how
    many things that were checked on the clean model; seconds are those of all faults, and of the clean model. `executions` is the
    median of the runs of prefixes on the target, None for a method without."""

    detected: tuple[int, int]
    operators: tuple[int, int]
    stages: tuple[int, int] | None
    classes: tuple[int, int]
    elements: float | None
    false_alarms: tuple[int, int]
    seconds: float
    clean_seconds: float
    executions: float | None = None


def is_detected(found: Found) -> bool | None:
    return found.detected if found.applies else None


def operator_right(found: Found) -> bool | None:
    return found.operator_right


def stage_right(found: Found) -> bool | None:
    return found.stage_right


@dataclass(frozen=True)
class BenchResult:
    """`seconds` are those of this process; a bench that was resumed has those of its findings besides."""

    model: str
    run: str
    target: str
    device: dict[str, Any]
    operators: int
    seed: int
    minimised: bool
    clean: dict[Method, Clean]
    rows: tuple[Row, ...]
    seconds: float
    resumed: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model, "run": self.run, "target": self.target, "device": self.device, "operators": self.operators,
            "seed": self.seed, "minimised": self.minimised,
            "methods": {m: {"title": title, "rule": RULES[m]} for m, title in METHODS.items()},
            "clean": {method: clean.to_json() for method, clean in self.clean.items()},
            "classes": [row.to_json() for row in self.rows],
            "totals": {method: asdict(totals) for method, totals in self.totals().items()},
            "seconds": self.seconds, "resumed": self.resumed,
        }  # fmt: skip

    @staticmethod
    def from_json(data: dict[str, Any]) -> BenchResult:
        known = ("model", "run", "target", "device", "operators", "seed", "minimised", "seconds", "resumed")
        return BenchResult(
            **{k: data[k] for k in known}, clean={m: Clean.from_json(c) for m, c in data["clean"].items()},
            rows=tuple(Row.from_json(row) for row in data["classes"]),
        )  # fmt: skip

    def totals(self) -> dict[Method, Totals]:
        return {method: _totals(method, self.rows, self.clean.get(method)) for method in METHODS}


def totals_of(rows: Iterable[Row], clean: dict[Method, Clean]) -> dict[Method, Totals]:
    """Totals of any rows, as when several runs are put together."""
    kept = tuple(rows)
    return {method: _totals(method, kept, clean.get(method)) for method in METHODS}


def facts(fault: FaultClass) -> dict[str, Any]:
    """What a row holds of a class."""
    return fault.to_json()


def _totals(method: Method, rows: tuple[Row, ...], clean: Clean | None) -> Totals:
    def counted(what: Callable[[Found], bool | None]) -> tuple[int, int]:
        pairs = [row.count(method, what) for row in rows]
        return sum(n for n, _ in pairs), sum(of for _, of in pairs)

    tried = [pair for row in rows if (pair := row.count(method, is_detected))[1]]
    findings = [f.findings[method] for row in rows for f in row.faults if method in f.findings]
    executions = [f.executions for f in findings if f.executions is not None]
    elements = [f.elements for f in findings if f.detected and f.elements is not None]
    return Totals(
        detected=counted(is_detected), operators=counted(operator_right),
        stages=counted(stage_right) if method == "tapml" else None,
        classes=(sum(n == of for n, of in tried), len(tried)),
        elements=statistics.median(elements) if elements else None,
        false_alarms=(0, 0) if clean is None else (len(clean.alarms), clean.checked),
        seconds=sum(f.seconds for f in findings), clean_seconds=0.0 if clean is None else clean.seconds,
        executions=statistics.median(executions) if executions else None,
    )  # fmt: skip
