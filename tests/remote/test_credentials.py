"""A hub's token needs no place on a command line, and kernels of others cannot read it from the process that runs them."""

from __future__ import annotations

import getpass
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tapml.cli.main import main
from tapml.cli.verb import device_words
from tapml.devices.child import ChildDevice
from tapml.errors import UsageError
from tapml.kernels import Kernel
from tapml.remote import credentials
from tapml.remote.address import HubAddress, RemoteName
from tests.devices.strangers import ONE, probe, run
from tests.remote.by_hand import Client
from tests.remote.processes import ROOT, Agent, Hub, running_hub

Need = Callable[[str], str]
FINGERPRINT = "ab" * 32


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("credentials")) as hub:
        yield hub


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (credentials.VARIABLE, credentials.FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(credentials, "_typed", {})
    monkeypatch.setattr(credentials, "_taken", [])


def kept(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("text", [f"abc.{FINGERPRINT}", f" abc.{FINGERPRINT}\n", f"https://h:1/?token=abc.{FINGERPRINT}\n"])
@pytest.mark.parametrize("way", ["variable", "file"])
def test_by_environment_or_file(text: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "variable":
        monkeypatch.setenv("TAPML_HUB_TOKEN", text)
    else:
        monkeypatch.setenv("TAPML_HUB_TOKEN_FILE", kept(tmp_path, text))
    for url in ("https://h:1", "https://h:1/"):
        address = HubAddress.parse(url)
        assert (address.token, address.fingerprint) == ("abc", FINGERPRINT)
    assert RemoteName.parse("any@https://h:1").hub.token == "abc"
    assert HubAddress.parse("https://h:1/?token=own").token == "own"
    assert HubAddress.parse("https://h:1/?pair=ABCD").token == ""


@pytest.mark.parametrize(("mode", "text", "word"), [
    (0o644, "abc", "0644.*chmod 600"), (0o620, "abc", "0620"), (0o600, " \n", "is empty"), (None, "", "cannot be read"),
])
def test_a_file_that_is_no_secret_is_refused(
    mode: int | None, text: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tmp_path / "none") if mode is None else kept(tmp_path, text, mode)
    monkeypatch.setenv("TAPML_HUB_TOKEN_FILE", name)
    with pytest.raises(UsageError, match=word):
        HubAddress.parse("http://h:1")


def test_it_is_asked_for_once_where_there_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(getpass, "getpass", lambda prompt: asked.append(prompt) or "typed")
    with pytest.raises(UsageError, match=r"has no token\. Pass it in TAPML_HUB_TOKEN"):
        HubAddress.parse("http://h:1")
    monkeypatch.setattr(credentials, "_terminal", lambda: True)
    assert [HubAddress.parse(url).token for url in ("http://h:1", "http://h:1/", "http://h:2")] == ["typed"] * 3
    assert asked == ["Token of the hub at h:1: ", "Token of the hub at h:2: "]


def test_it_can_be_typed(hub: Hub) -> None:
    """At a real terminal; what is typed is not shown."""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "tapml", "devices", hub.address.redacted], stdin=follower, stdout=follower, stderr=follower,
        cwd=ROOT, start_new_session=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("TAPML_HUB")},
    )
    os.close(follower)
    said = b""
    while b"Token of the hub" not in said:
        said += os.read(leader, 1000)
    os.write(leader, hub.address.token.encode() + b"\n")
    try:
        while True:
            said += os.read(leader, 1000)
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    assert child.wait(60) == 0, said
    assert hub.address.token.encode() not in said


def test_an_address_without_a_token_is_enough_for_every_verb(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAPML_HUB_TOKEN", hub.url)
    assert main(["devices", hub.address.redacted]) == 0
    assert hub.address.token not in "".join(capsys.readouterr())
    assert device_words(f"any@{hub.address.redacted}") == ["--device", f"any@{hub.address.redacted}"]
    assert device_words(f"any@{hub.url}")[1].endswith("?token=…")


# Copies what /proc says of the process that started this one. It declares what it calls, since an agent lets no header through.
SPY = Kernel("c", "spy", """
int open(const char*, int, ...); long read(int, void*, unsigned long); int getppid(void); int sprintf(char*, const char*, ...);
void spy(unsigned char* x) {
  char name[64];
  const char* files[] = {"cmdline", "environ"};
  for (int i = 0; i < 2; ++i) {
    sprintf(name, "/proc/%d/%s", getppid(), files[i]);
    int file = open(name, 0);
    if (file >= 0) read(file, x + 32768 * i, 32768);
  }
}
""", ("read_write",), ONE, ONE)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not run: only Linux shows processes in /proc")
@pytest.mark.parametrize("way", ["address", "variable", "file"])
def test_a_kernel_finds_no_token_in_the_process_that_started_it(need: Need, hub: Hub, way: str, tmp_path: Path) -> None:
    """Not confined, so that it can look: what it finds holds none."""
    need("cpu")
    url, given = hub.address.redacted, {}
    if way == "address":
        url = hub.url
    elif way == "variable":
        given = {"TAPML_HUB_TOKEN": hub.address.token}
    else:
        given = {"TAPML_HUB_TOKEN_FILE": kept(tmp_path, hub.url)}
    agent = Agent(url, way, "--target", "cpu", "--unconfined", env=given)
    try:
        agent.wait_said("cpu: ")
        client = Client(hub.address, way)
        client.open()
        client.load(1, SPY)
        client.send(["allocate", 1, 65536], ["write", 1, 0, bytes(65536)], ["launch", [[1, [1]]]])
        found = client.ask("read", 1, 0, 65536)
        client.end()
        assert b"agent" in found[:32768], "it saw nothing of the command line"
        assert b"PATH=" in found[32768:] or os.geteuid() != 0, "it saw nothing of the environment"
        assert hub.address.token.encode() not in found
        said = agent.said()
        assert said.count("The token is on the command line") == (way == "address") and hub.address.token not in said
    finally:
        agent.end()


def test_a_local_child_inherits_no_token(need: Need, monkeypatch: pytest.MonkeyPatch) -> None:
    need("cpu")
    monkeypatch.setenv("TAPML_HUB_TOKEN", "top-secret")
    device = ChildDevice("cpu")
    try:
        assert run(device, probe('getenv("TAPML_HUB_TOKEN") ? (errno = 1, -1) : 0'))[0] == 0
    finally:
        device.close()
