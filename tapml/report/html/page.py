"""Writes a report: one HTML file that holds its data, its styles, its logic and the plotting library.

    written = write_report(run, Path("report.html"))                       every target that has results
    written = write_report(run, Path("report.html"), ["opencl"], other)    one target, compared with another run

The page's parts are real files beside this one (`page.html`, `page.css`, `js/*.js`, plain ES modules). The modules become one
script, each in a function of its own, in the order of `MODULES`. The plotting library is BokehJS, from the `bokeh` package. A
content security policy in the page forbids every request, so that opening it is private and works without a network.

The file stays below `LIMIT`: what a larger one has to do without is in `fit.py`, and the page itself says so.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapml.carving.folder import RunFolder
from tapml.carving.layout import folder_name
from tapml.errors import TargetError, UnavailableError, UsageError
from tapml.migrate.workbench import Progress
from tapml.printable import printable
from tapml.report.html.data import report_data
from tapml.report.html.fit import smaller
from tapml.report.html.sides import read_sides, targets_of
from tapml.targets.parse import parse
from tapml.whole_file import why_not, write_whole

LIMIT = 5_000_000

_HERE = Path(__file__).resolve().parent

# In the order in which they are put together: each module imports only from those before it.
MODULES = (
    "dom", "format", "data", "theme", "colour", "state", "legend", "map", "chart", "picture", "code", "kernel", "panel",
    "list", "story", "health", "invariance", "compare", "header", "keys", "main",
)  # fmt: skip

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:function|const|class) (\w+))", re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """What was written: `left_out` has a sentence for each thing that did not fit."""

    file: Path
    bytes: int
    operators: int
    targets: tuple[str, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file), "bytes": self.bytes, "operators": self.operators, "targets": list(self.targets),
            "left_out": list(self.left_out),
        }  # fmt: skip


def write_report(
    run: RunFolder, out: Path, targets: Sequence[str] | None = None, against: RunFolder | None = None,
    progress: Progress | None = None, limit: int = LIMIT,
) -> Written:
    """Writes the report of a run to the file `out`, replacing it. `targets` (None: all that have results) are names as given to
    `--target`. Raises UsageError when a named target has no results or `out` cannot be a file, RunError for damaged results,
    UnavailableError without the `bokeh` package."""
    if out.is_dir() or not out.resolve().parent.is_dir():
        what = "is a directory" if out.is_dir() else f"cannot be written: there is no directory {out.resolve().parent}"
        raise UsageError(f"{out} {what}. Give the name of a file, as in -o report.html")
    refused = "" if out.exists() and not out.is_file() else why_not(out.resolve().parent)
    if refused:
        raise UsageError(f"{out} cannot be written: {refused} in {out.resolve().parent}. Give another place with -o.")
    library = _library()
    found, left_out = read_sides(run, _folders(run, targets))
    if against is not None:
        more, also = read_sides(against, targets_of(against) if targets is None else _folders(against, targets, found != []), 1)
        found, left_out = found + more, left_out + also
    data, kernels = report_data(run, found, against, left_out, progress)
    for notes, left in smaller(data, kernels):
        page = _page(data | {"kernels": kernels.data(left), "left_out": notes}, library)
        nbytes = len(page.encode("utf-8"))
        if nbytes <= limit:
            break
    write_whole(out, page)
    names = tuple(dict.fromkeys(side.header["target"] for side in found))
    return Written(out, nbytes, len(run.operators), names, tuple(notes))


def _folders(run: RunFolder, targets: Sequence[str] | None, may_lack: bool = False) -> list[str]:
    here = targets_of(run)
    if targets is None:
        return here
    folders = {t: folder_name(_canonical(t)) for t in targets}
    missing = [t for t in targets if folders[t] not in here]
    if missing and not may_lack:
        known = f"There are results of {', '.join(here)}" if here else "There are no results of any target"
        make = f"tapml migrate {run.path} --target {missing[0]}"
        raise UsageError(f"{run.path} has no results of target {missing[0]!r}. {known}. Make them: {make}")
    return [folder for folder in folders.values() if folder in here]


def _canonical(target: str) -> str:
    """As results are filed, whatever the order of its options; a name that is no target of this version stays as it is."""
    try:
        return str(parse(target))
    except TargetError:
        return target


def _page(data: dict[str, Any], library: str) -> str:
    parts = {
        "TITLE": _text(printable(f"{data['run']['name']} · TapML report")),
        "CSS": (_HERE / "page.css").read_text(encoding="utf-8"),
        "DATA": embedded(_shown(data)),
        "LIBRARY": library,
        "SCRIPT": script(),
    }
    template = (_HERE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found[1]], template)


def _shown(data: Any) -> Any:
    """The data with every text in it as it can be looked at: a browser hides control characters, and lets others turn lines."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, dict):
        return {printable(key): _shown(value) for key, value in data.items()}
    return [_shown(value) for value in data] if isinstance(data, list | tuple) else data


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element: no character of it can end the element or open a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Half of a surrogate pair is no text that can be encoded; a name from a damaged file may hold one.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def script() -> str:
    """The page's logic as one script: each module a function of its own that returns what it exports; the last, which exports
    nothing, as it is. Raises ValueError for a module that is written in a way that this does not know."""
    parts: list[str] = []
    for name in MODULES:
        text = (_HERE / "js" / f"{name}.js").read_text(encoding="utf-8")
        exported = _EXPORT.findall(text)
        text = _EXPORT.sub("", _IMPORT.sub(r"const {\1} = $\2;", text))
        if re.search(r"^(import|export)\b", text, re.MULTILINE):
            raise ValueError(f"{name}.js has an import or export of another form than the others")
        parts.append(f"const ${name} = (() => {{\n{text}return {{ {', '.join(exported)} }};\n}})();" if exported else text)
    return "\n".join(parts)


def _library() -> str:
    """BokehJS with its plotting interface, from the installed package, without importing it."""
    found = importlib.util.find_spec("bokeh")
    if found is None or found.origin is None:
        raise UnavailableError("A report needs the plotting library in the bokeh package: pip install 'tapml[report]'")
    library = (Path(found.origin).parent / "server" / "static" / "js" / "bokeh.min.js").read_text(encoding="utf-8")
    return library.replace("</script", "<\\/script")


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
