"""Answers and conversations of a real bundle, in this process, through pipes and at a terminal."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapml.cli.chat import _stopped_by_ctrl_c, read
from tapml.cli.main import main
from tapml.deploy.answer import CONTEXT_FULL, INTERRUPTED, MAX_TOKENS, STOP_STRING, STOP_TOKEN, Answer, Asked
from tapml.deploy.bundle import BundleFolder
from tapml.deploy.conversation import Conversation
from tapml.deploy.sampling import Sampler, Sampling
from tapml.deploy.session import Session
from tapml.deploy.text import Text
from tapml.devices.child import PACKAGE_PARENT
from tapml.errors import PromptError, UsageError
from tapml.runtime.protocol import Generating, answered
from tests.cli.test_schemas import meets
from tests.deploy.vocabularies import ASSISTANT, END, USER
from tests.hostile import left_in

SAMPLING = Sampling(temperature=1.0, top_k=20, seed=4)
PROMPT = [5, 9, 70, 33, 12, 8, 44, 51, 17, 6]


@pytest.fixture(scope="module")
def session(talking: Path) -> Iterator[Session]:
    with Session(BundleFolder.open(talking)) as opened:
        yield opened


def test_tokens_are_drawn_from_the_logits_of_the_model(session: Session) -> None:
    """Against the calls made one by one, each row drawn from by a sampler of its own."""
    tokens = list(session.generate(PROMPT, 12, SAMPLING))
    assert tokens == list(session.generate(PROMPT, 12, SAMPLING)), "the same seed, the same tokens"
    assert tokens != list(session.generate(PROMPT, 12, Sampling(temperature=1.0, top_k=20, seed=5)))
    protocol = session.bundle.protocol
    assert isinstance(protocol, Generating)
    row = protocol.row(answered(session._player, protocol.read(PROMPT)))
    for place, token in enumerate(tokens):
        assert token == Sampler(SAMPLING, protocol.vocabulary).choose(row, len(PROMPT) + place)
        call = protocol.append(token, len(PROMPT) + place)
        row = protocol.row(session._player.step(call.graph, call.inputs))


def steps(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs of the calls from now on."""
    made: list[str] = []
    step = session._player.step

    def watched(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        made.append(graph)
        return step(graph, inputs)

    monkeypatch.setattr(session._player, "step", watched)
    return made


def test_what_the_cache_holds_is_not_taken_in_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 8: of a prompt of 19 of which 14 are held, the last two are taken in, and the tokens are the same."""
    first = list(session.generate(PROMPT, 5, SAMPLING))
    assert session.held.tokens == [*PROMPT, *first[:-1]]
    longer = [*PROMPT, *first, 60, 61, 62, 63]
    fresh = list(session.generate(longer, 6, SAMPLING))
    list(session.generate(PROMPT, 5, SAMPLING))
    made = steps(session, monkeypatch)
    assert list(session.generate(longer, 6, SAMPLING, reuse=True)) == fresh
    assert made[:3] == ["prefill", "prefill", "decode"] and session.held.reused == 8
    made.clear()
    assert list(session.generate(longer, 6, SAMPLING, reuse=True)) == fresh
    assert made[:2] == ["prefill", "decode"] and session.held.reused == 16, "the last chunk always"
    made.clear()
    assert list(session.generate(PROMPT, 5, SAMPLING, reuse=True)) == first, "a shorter text in a cache that holds more"
    assert list(session.generate([99, *PROMPT[1:]], 1, SAMPLING, reuse=True)) and session.held.reused == 0
    assert list(session.generate(longer, 6, SAMPLING)) == fresh and session.held.reused == 0


def test_a_call_that_failed_leaves_nothing_to_reuse(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(session.generate(PROMPT, 6, SAMPLING))
    generating = session.generate(PROMPT, 6, SAMPLING)
    assert [next(generating), next(generating)] == expected[:2]
    assert session.held.tokens == [*PROMPT, expected[0]]
    generating.close()
    assert session.held.tokens == [*PROMPT, expected[0]], "an answer that nobody wants any more"
    with monkeypatch.context() as patch:
        patch.setattr(session._player, "step", lambda graph, inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(session.generate(PROMPT, 6, SAMPLING, reuse=True))
    assert session.held.tokens == []
    assert list(session.generate(PROMPT, 6, SAMPLING, reuse=True)) == expected and session.held.reused == 0


def test_why_an_answer_ends(session: Session) -> None:
    text = Text(session.bundle)

    def answer(asked: Asked, prompt: Sequence[int] = PROMPT) -> Answer:
        made = Answer(session, text, prompt, asked)
        pieces = list(made)
        assert "".join(pieces) == made.text and all(pieces)
        return made

    never_ends = {END: float("-inf")}
    whole = answer(Asked(10, Sampling(logit_bias=never_ends)))
    assert whole.ended == MAX_TOKENS and len(whole.tokens) == 10 and whole.text == text.of(whole.tokens)
    cut = answer(Asked(10, Sampling(logit_bias=never_ends), stop=(whole.text[4:6],)))
    assert cut.ended == STOP_STRING and cut.text == whole.text[: whole.text.index(whole.text[4:6])]
    assert cut.stop_string == whole.text[4:6] and cut.tokens == whole.tokens[: len(cut.tokens)]
    full = answer(Asked(100, Sampling(logit_bias=never_ends)))
    assert full.ended == CONTEXT_FULL and len(PROMPT) + len(full.tokens) == 33, "the last one need not be taken in"
    ended = answer(Asked(10, Sampling(logit_bias={END: 100.0})))
    assert (ended.ended, ended.tokens, ended.text, ended.tokens_per_second) == (STOP_TOKEN, [END], "", None)
    stopped = Answer(session, text, PROMPT, Asked(10, Sampling(logit_bias=never_ends)))
    for _ in stopped:
        stopped.interrupt()
    assert stopped.ended == INTERRUPTED and len(stopped.tokens) == 1
    assert "1 token; the first after" in stopped.summary and "ended: interrupted" in stopped.summary


def test_turns_are_dropped_when_they_do_not_fit(talking: Path) -> None:
    text = Text(BundleFolder.open(talking))
    conversation = Conversation(text, 32, "be")
    assert conversation.ask("abc", 4).tokens[-6:] == [USER, *text._tokenizer.encode("abc").ids, END, ASSISTANT]
    conversation.answered("wxyz")
    assert conversation.ask("defg", 4).dropped == 0
    conversation.answered("uv")
    found = conversation.ask("hij", 4)
    assert found.dropped == 1 and text._tokenizer.decode(found.tokens, False) == "<s>be<e><u>defg<e><a>uv<e><u>hij<e><a>"
    conversation.answered("")
    assert conversation.turns == [("defg", "uv")], "a question without an answer is forgotten"
    with pytest.raises(PromptError, match=r"The message does not fit: .* it is 47 tokens, and the context holds 32"):
        conversation.ask("k" * 40, 4)
    assert conversation.turns == [("defg", "uv")]
    assert conversation.ask("l" * 22, 9).dropped == 1, "with less room than was asked for"
    conversation.reset()
    assert conversation.to_json() == [{"role": "system", "content": "be"}]


@pytest.mark.parametrize("lines, messages", [
    (["hi", "ho"], ["hi", "ho"]),
    (["a\\", "b\\", "c", "d"], ["a\nb\nc", "d"]),
    (['"""', "a\\", "", "/exit", '"""', "b"], ["a\\\n\n/exit", "b"]),
    (["a\\"], ["a"]),
    (['"""', "a"], ["a"]),
    ([], []),
])  # fmt: skip
def test_a_message_may_have_several_lines(lines: list[str], messages: list[str]) -> None:
    left = iter(lines)
    found = []
    while (message := read(lambda more: next(left, None))) is not None:
        found.append(message)
    assert found == messages


def piped(bundle: Path, typed: bytes, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "tapml", "chat", str(bundle), *map(str, words)], input=typed, capture_output=True, check=False,
        timeout=120, env=os.environ | {"PYTHONPATH": PACKAGE_PARENT},
    )  # fmt: skip


def test_a_conversation_through_pipes(talking: Path, tmp_path: Path, session: Session) -> None:
    kept, result = tmp_path / "kept.json", tmp_path / "result.json"
    typed = f"hey\n\n//a\\\nb\n/set max-tokens 3\nokay, go on.\n/stats\n/save {kept}\n/reset\n/system x\nlast\n/exit\nnever\n"
    done = piped(talking, typed.encode(), "--max-tokens", "4", "--logit-bias", f"{END}=-inf", "--json", result)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    data = json.loads(result.read_text())
    meets("chat", data)
    assert [turn["prompt"] for turn in data["turns"]] == ["hey", "/a\nb", "okay, go on.", "last"]
    assert done.stdout.decode() == "".join(f"{turn['text']}\n" for turn in data["turns"])
    assert [len(turn["generated"]) for turn in data["turns"]] == [4, 4, 3, 3]
    assert data["turns"][1]["reused"] == 8 and data["dropped"] == 1 and data["system"] == "x"
    messages = json.loads(kept.read_text())["messages"]
    assert [m["content"] for m in messages] == ["/a\nb", data["turns"][1]["text"], "okay, go on.", data["turns"][2]["text"]]
    text = Text(session.bundle)
    again = list(session.generate(text.of_turns(messages[:3]), 3, Sampling(logit_bias={END: float("-inf")})))
    assert again == data["turns"][2]["generated"], "what the cache held gives what a new session gives"
    for words in ("the oldest 1 turn is forgotten", "max-tokens is 3", "3 answers, 11 tokens", "ended: max tokens", "2 turns"):
        assert words in said


@pytest.mark.parametrize("typed, said", [
    (b"/hepl\n", "There is no command /hepl. Did you mean help?"),
    (b"/set heat 3\n", "There is no setting 'heat'"),
    (b"/set top-k 1.5\n", "top-k is a whole number, not '1.5'"),
    (b"/set temperature -1\n", "temperature is -1.0; it is a number of at least 0"),
    (b"/save\n", "/save needs the name of a file"),
    (b"\xff\n", "The message is not UTF-8 text"),
    (b"k" * 40, "The message does not fit"),
])  # fmt: skip
def test_what_goes_wrong_in_a_pipe_ends_it(
    talking: Path, typed: bytes, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.write(writing, typed)
    os.close(writing)
    with open(reading, encoding="utf-8") as stdin:  # noqa: PTH123
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["chat", str(talking)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_model_without_turns(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(built)]) == 2
    assert "has no chat template, so it knows no turns" in capsys.readouterr().err
    assert main(["generate", str(built), "--prompt", "5", "--system", "be"]) == 2
    with pytest.raises(UsageError, match="no chat template"):
        Text(BundleFolder.open(built)).of_turns([])


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("torch", "tvm", "tvm_ffi", "transformers"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
from tapml.cli.main import main
sys.exit(main(["generate", *sys.argv[1:]]))
"""


def test_json_is_written_without_torch_and_transformers(talking: Path) -> None:
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 3}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(talking), "--prompt", "ab", "--json-schema", json.dumps(schema), "--temperature", "2"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 1 <= len(json.loads(done.stdout)) <= 3 and "ended: schema" in done.stderr


def test_generate_prints_and_tells(talking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--max-tokens", "4", "--temperature", "1", "--seed", "3", "--logit-bias", f"{END}=-inf")
    assert main(["generate", str(talking), "--prompt", "ab", *flags]) == 0
    alone = capsys.readouterr()
    assert "4 tokens; the first after" in alone.err and alone.err.count("\n") == 1
    assert main(["generate", str(talking), "--prompt", "ab", "--prompt", "c", *flags]) == 0
    both = capsys.readouterr().out
    assert both.startswith(f"> ab\n{alone.out}\n> c\n")
    assert main(["generate", str(talking), "--prompt", "ab", *flags, "--system", "d", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    meets("generate", data)
    assert data["sampling"]["seed"] == 3 and data["sampling"]["logit_bias"] == {str(END): "-inf"}
    (answer,) = data["answers"]
    assert answer["ended"] == MAX_TOKENS and answer["tokens"] == Text(BundleFolder.open(talking)).tokens("ab", "d")
    assert main(["generate", str(talking), "--prompt", "ab", "--published", "--top-k", "7", "--json", "-"]) == 0
    sampling = json.loads(capsys.readouterr().out)["sampling"]
    assert (sampling["temperature"], sampling["top_k"], sampling["top_p"]) == (2.0, 7, 1.0)
    unfinished = ("--json-schema", '{"type": "string", "minLength": 9}')
    assert main(["generate", str(talking), "--prompt", "ab", *flags, *unfinished]) == 1
    assert capsys.readouterr().err.endswith("ended: max tokens; the JSON is not whole\n")


@pytest.mark.parametrize("flags, said", [
    (["--temperature", "-1"], "temperature is -1.0; it is a number of at least 0"),
    (["--temperature", "hot"], "invalid float value: 'hot'"),
    (["--top-p", "nan"], "top_p is nan"),
    (["--logit-bias", "the=2"], "'the=2' is not TOKEN=BIAS, such as 42=-5"),
    (["--logit-bias", "4"], "'4' is not TOKEN=BIAS"),
    (["--logit-bias", "999=2"], "logit_bias names token 999; the model's go from 0 to 127"),
    (["--stop", ""], "--stop is empty"),
    (["--json-schema", "nothing.json"], "--json-schema nothing.json cannot be read: No such file"),
    (["--json-schema", "{"], "The JSON schema is not JSON"),
    (["--json-schema", '{"type": "objec"}'], "cannot be followed: Invalid type: objec"),
])  # fmt: skip
def test_flags_that_cannot_be_followed(
    talking: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(talking), "--prompt", "a", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


# The program itself in the foreground of a terminal, with steps so slow that an answer can be stopped.
SLOW = """
import fcntl, sys, termios, time
from tapml.cli.main import main
from tapml.deploy.player import Player
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
step = Player.step
def slow(self, graph, inputs):
    time.sleep(0.2)
    return step(self, graph, inputs)
Player.step = slow
sys.exit(main(sys.argv[1:]))
"""


class Screen:
    """A pseudo-terminal with the program on it."""

    def __init__(self, *words: str | Path) -> None:
        self.own, its = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW, *map(str, words)], stdin=its, stdout=its, stderr=its, start_new_session=True,
            env=os.environ | {"TERM": "dumb", "PYTHONPATH": PACKAGE_PARENT},
        )  # fmt: skip
        os.close(its)
        self.text = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")  # what comes may end within a character

    def type(self, text: str) -> None:
        os.write(self.own, text.encode())

    def until(self, words: str) -> str:
        """What came up to these words, which are waited for; with "" whatever comes first."""
        while not self.text if words == "" else words not in self.text:
            assert self._more(), f"it ended without {words!r}: {self.text!r}"
        before, _, self.text = (self.text, "", "") if words == "" else self.text.partition(words)
        return before

    def press(self, key: str, words: str) -> None:
        """Presses a key until these words come. Ctrl-C is lost, as far as the next key, if it comes just between the prompt and
        Python's waiting for a line."""
        for _ in range(30):
            self.type(key)
            while select.select([self.own], [], [], 2)[0] and words not in self.text:
                assert self._more(), f"it ended without {words!r}: {self.text!r}"
            if words in self.text:
                break
        self.until(words)

    def _more(self) -> bool:
        """Waits for the program to print; False when it has ended."""
        assert select.select([self.own], [], [], 60)[0], f"nothing came after {self.text!r}"
        try:
            self.text += self.decoder.decode(os.read(self.own, 2**16))
        except OSError:  # nobody has the other end any more
            return False
        return True

    def close(self) -> int:
        """The exit code. What the program prints last is read, or it could not end."""
        while self._more():
            pass
        os.close(self.own)
        return self.process.wait(60)


@pytest.fixture
def screen(talking: Path) -> Iterator[Screen]:
    made = Screen("chat", talking, "--logit-bias", f"{END}=-inf", "--max-tokens", "25")
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def test_a_conversation_at_a_terminal(screen: Screen) -> None:
    assert "32 positions · /help for commands, Ctrl-D to leave" in screen.until("> ")
    screen.press("\x03", "To leave, type /exit or press Ctrl-D.")
    screen.until("> ")
    screen.type("/nothing\n")
    screen.until("There is no command /nothing.")
    screen.until("> ")
    screen.type("abcdefghi\n")
    screen.until("abcdefghi\r\n")
    shown = ""
    while not shown.strip():  # a first piece of the answer, not what the terminal adds to the line
        shown += screen.until("")
    screen.type("\x03")
    shown += screen.until("ended: interrupted]")
    assert not left_in(shown, bars=True)
    counted = re.search(r"\[(\d+) tokens?; the first after", shown)
    assert counted and 0 < int(counted[1]) < 20, shown
    screen.until("> ")
    screen.type("/set max-tokens 2\n")
    screen.until("max-tokens is 2.")
    screen.until("> ")
    for line in ('"""', "x", "y"):
        screen.type(f"{line}\n")
        screen.until("… ")
    screen.type('"""\n')
    screen.until("ended: max tokens]")
    screen.until("> ")
    screen.type("/stats\n")
    screen.until(f"2 answers, {int(counted[1]) + 2} tokens")
    screen.until("> ")
    screen.type("\x04")
    assert screen.close() == 0


def test_the_second_ctrl_c_ends_the_program() -> None:
    answer: Any = types.SimpleNamespace(interrupted=False)
    answer.interrupt = lambda: setattr(answer, "interrupted", True)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught, _stopped_by_ctrl_c(answer):
        os.kill(os.getpid(), signal.SIGINT)
        assert answer.interrupted
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.code == 130 and signal.getsignal(signal.SIGINT) == before
