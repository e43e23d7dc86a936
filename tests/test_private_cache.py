"""The cache is the user's own, holds what this installation made, and has a bound."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tapml.cache import seals
from tapml.cache.bounded import Bounded, limit_of_environment
from tapml.cache.folder import cache_folder
from tapml.cli.main import main
from tapml.compile.cache import KernelCache
from tapml.compile.result import Attempt, concluded
from tapml.devices.cpu import CpuDevice, find_compiler
from tapml.errors import UnavailableError, UsageError
from tapml.kernels import Kernel, Program
from tapml.operators.graph import Body
from tapml.private import not_private, private_folder
from tapml.remote.hub.tokens import Tokens
from tapml.targets.known import TARGETS
from tapml.tensors import TensorSpec
from tests.devices.strangers import run

SOMEBODY = 12345

owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="not run: files have no owners here")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="not run: only root can give files away")
compiles = pytest.mark.skipif(find_compiler() is None, reason="not run: there is no C compiler for the target cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache folder will be."""
    monkeypatch.setenv("TAPML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@owners
def test_it_is_made_for_its_owner_only(cache: Path) -> None:
    before = os.umask(0)
    try:
        assert mode(cache_folder()) == 0o700
        cache.chmod(0o755)  # as an earlier version left it
        assert mode(cache_folder()) == 0o700
    finally:
        os.umask(before)


@owners
@pytest.mark.parametrize("open_to", [0o770, 0o702, 0o777, 0o1777])
def test_one_that_others_can_write_is_refused(cache: Path, open_to: int, capsys: pytest.CaptureFixture[str]) -> None:
    cache_folder()
    cache.chmod(open_to)
    with pytest.raises(UsageError, match=rf"can be written by other users \(mode {open_to:04o}\).*chmod 700"):
        cache_folder()
    assert main(["hub", "--port", "0"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@root
def test_one_of_another_user_is_refused(cache: Path) -> None:
    cache_folder()
    os.chown(cache, SOMEBODY, SOMEBODY)
    with pytest.raises(UsageError, match="belongs to another user"):
        cache_folder()
    with pytest.raises(UsageError, match="belongs to another user"):
        private_folder(cache, "the folder")


@root
def test_a_folder_in_it_of_another_user_is_not_used(cache: Path) -> None:
    device = CpuDevice()
    (cache_folder() / "cpu").mkdir()
    os.chown(cache / "cpu", SOMEBODY, SOMEBODY)
    with pytest.raises(UnavailableError, match="belongs to another user"):
        device.load(PLUS)
    device.close()


PLUS = Kernel("c", "plus", "void plus(float* x) { x[0] += 1; }", ("read_write",), (1, 1, 1), (1, 1, 1))
MINUS = Kernel("c", "plus", "void plus(float* x) { x[0] -= 1; }", ("read_write",), (1, 1, 1), (1, 1, 1))


def ran(kernel: Kernel) -> int:
    device = CpuDevice()
    try:
        return run(device, kernel)[0]
    finally:
        device.close()


@compiles
def test_a_compiled_object_is_kept_and_sealed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ran(PLUS) == 1
    (made,) = (cache / "cpu").iterdir()
    assert mode(cache / "cpu") == 0o700 and mode(cache / seals.FILE) == 0o600
    monkeypatch.setattr(CpuDevice, "_compile", None)  # nothing is compiled any more
    assert ran(PLUS) == 1 and made.exists()


@compiles
@pytest.mark.parametrize("change", ["another object", "another name", "no seal", "cut", "empty", "another installation"])
def test_a_compiled_object_that_was_not_made_here_is_not_loaded(cache: Path, change: str) -> None:
    """An object that somebody put there would run in this process: it is made again."""
    assert ran(PLUS) == 1
    (first,) = (cache / "cpu").iterdir()
    assert ran(MINUS) == -1
    (second,) = set((cache / "cpu").iterdir()) - {first}
    good, evil = first.read_bytes(), second.read_bytes()
    first.unlink()  # this process has it mapped
    first.write_bytes({
        "another object": evil[: -seals.BYTES] + good[-seals.BYTES :], "another name": evil, "no seal": evil[: -seals.BYTES],
        "cut": evil[:100], "empty": b"", "another installation": good,
    }[change])
    if change == "another installation":
        (cache / seals.FILE).unlink()
        seals._key.cache_clear()
        assert not seals.sound(first.name, good[: -seals.BYTES], good[-seals.BYTES :])
    assert ran(PLUS) == 1
    data = first.read_bytes()
    assert seals.sound(first.name, data[: -seals.BYTES], data[-seals.BYTES :])


def test_a_key_that_others_could_read_seals_nothing(cache: Path) -> None:
    found = seals.seal("name", b"data")
    assert seals.sound("name", b"data", found)
    assert not seals.sound("other", b"data", found) and not seals.sound("name", b"", found)
    (cache / seals.FILE).chmod(0o644)
    seals._key.cache_clear()
    assert not seals.sound("name", b"data", found)
    assert mode(cache / seals.FILE) == 0o600


def test_a_kernel_text_that_was_not_made_here_is_compiled_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A digest alone, which whoever writes the text can work out, is not enough."""
    import hashlib

    body = Body("plain", (TensorSpec((4,), "float32"),), ("value",), (), ("i0",))
    kept = KernelCache(cache_folder() / "kernels", TARGETS["opencl"])
    kept.put(body, concluded(body.signature, Program((), (), (), (), (), "first"), (Attempt("first", "ok", None, "", 0.0),)))
    assert kept.get(body) is not None
    path = kept.path(body)
    seal, _, payload = path.read_text().partition("\n")
    assert mode(path.parent) == mode(kept.folder) == 0o700
    for forged in (
        f"{hashlib.blake2b(payload.encode(), digest_size=16).hexdigest()}\n{payload}",
        f"{seal}\n{payload.replace('first', 'other')}", payload, f"{'0' * 64}\n{payload}", "",
    ):
        path.write_text(forged)
        assert kept.get(body) is None and "compiling again" in caplog.text
    path.write_text(f"{seal}\n{payload}")
    assert kept.get(body) is not None


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    folder = Bounded(tmp_path, limit=1000)
    for number in range(12):
        path = tmp_path / f"{number}"
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
        if number == 9:
            folder.used(tmp_path / "0")
        folder.added(100)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"0", "5", "6", "7", "8", "9", "10", "11"}
    assert folder.fits(250) and not folder.fits(251)


@compiles
def test_compiled_objects_have_a_bound(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPML_CACHE_LIMIT", "100K")
    for number in range(12):
        source = f"void plus(float* x) {{ x[0] += {number}; }}"
        assert ran(Kernel("c", "plus", source, ("read_write",), (1, 1, 1), (1, 1, 1))) == number
    assert 0 < sum(path.stat().st_size for path in (cache / "cpu").iterdir()) <= 100 * 2**10
    large = "const float much[20000] = {1}; void plus(float* x) { x[0] += much[0] + much[(int)x[0]]; }"
    assert ran(Kernel("c", "plus", large, ("read_write",), (1, 1, 1), (1, 1, 1))) == 2
    assert max(path.stat().st_size for path in (cache / "cpu").iterdir()) < 80_000  # it ran, and was not kept


@pytest.mark.parametrize(("text", "nbytes"), [("", 2**30), ("500M", 500 * 2**20), ("1.5g", 3 * 2**29), ("4096", 4096)])
def test_the_bound_can_be_set(text: str, nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPML_CACHE_LIMIT", text)
    assert limit_of_environment() == nbytes


@pytest.mark.parametrize("text", ["much", "0", "-1G", "5X", "1e999", "nan"])
def test_a_bound_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPML_CACHE_LIMIT", text)
    with pytest.raises(UsageError, match="is not a size"):
        limit_of_environment()


@owners
@pytest.mark.parametrize("open_to", [0o640, 0o604, 0o620, 0o666])
def test_a_hubs_token_that_others_can_read_is_refused(tmp_path: Path, open_to: int) -> None:
    state = tmp_path / "hub"
    secret = Tokens.kept(state).secret
    (state / "token").chmod(open_to)
    with pytest.raises(UsageError, match=rf"{open_to:04o}.*chmod 600"):
        Tokens.kept(state)
    assert Tokens.kept(state, new=True).secret != secret  # what others read opens nothing any more
    assert not not_private(state / "token")


@root
def test_a_hubs_token_of_another_user_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "hub"
    Tokens.kept(state)
    os.chown(state / "token", SOMEBODY, SOMEBODY)
    with pytest.raises(UsageError, match="belongs to another user"):
        Tokens.kept(state)


