"""Bundles of a small model: as it was carved, and with a tokenizer and a chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tapml.api import Run
from tapml.cache.folder import file_digest
from tapml.carving import layout as of_run
from tapml.carving.folder import RunFolder
from tapml.deploy import layout
from tapml.deploy.build import build
from tapml.manifest import SEAL, seal
from tests.conftest import MakeRun
from tests.deploy.vocabularies import CHAT, END, small

TARGET = "cpu"


@pytest.fixture(scope="session")
def run(make_run: MakeRun) -> RunFolder:
    found = make_run("llama")
    Run.open(found.path).migrate(TARGET, fresh=True)
    return found


@pytest.fixture(scope="session")
def built(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(run, TARGET, tmp_path_factory.mktemp("bundles") / "llama").path


@pytest.fixture(scope="session")
def talking(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with text: one token a character, turns as in `tests.deploy.vocabularies.CHAT`, 32 positions; its
    publisher samples with a temperature of 2."""
    folder = Path(shutil.copytree(built, tmp_path_factory.mktemp("talking") / "bundle"))
    (folder / of_run.TOKENIZER).write_text(small().to_str())
    (folder / of_run.CHAT).write_text(json.dumps({"template": CHAT, "special": {}}))
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    for name in (of_run.TOKENIZER, of_run.CHAT):
        path = folder / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "digest": file_digest(path)}
    manifest["calls"]["stop"] = [END]
    manifest |= {"licence": "mit", "generation": {"temperature": 2.0, "top_k": 40}}
    manifest[SEAL] = seal(manifest)
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))
    return folder
