"""Text that is not ours is seen, and does nothing else: in streams, in tables, and in what is shown beside a progress bar."""

from __future__ import annotations

import io
import logging
import sys
import unicodedata

import pytest
from rich.table import Table
from rich.text import Text

from tapml.printable import MOST, bare, cut, guard, guarded, printable
from tapml.report.progress import Progress
from tapml.report.terminal import Terminal
from tests.hostile import HOSTILE, SEEN, left_in


class Screen(io.StringIO):
    """A terminal, to rich."""

    def isatty(self) -> bool:
        return True


def test_nothing_that_steers_hides_or_turns_is_left() -> None:
    for code in range(0x110000):
        character = chr(code)
        kind = unicodedata.category(character)
        turns = unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        if character not in "\t\n" and (kind in ("Cc", "Cs", "Zl", "Zp") or turns):
            assert printable(character) != character, f"{code:x}"
            assert printable(character).isascii() and printable(character).isprintable()


@pytest.mark.parametrize("text", ["a\tb\n", "é", "日本語", "…·×", "\U0001f680", "\\x1b", "a b"])
def test_what_can_be_seen_stays(text: str) -> None:
    assert printable(text) == text


def test_escapes_say_what_was_there_and_once_is_enough() -> None:
    assert printable("\x1b[2J\x9b\r\u202e\ud800\U000e0041\x7f\r\n") == "\\x1b[2J\\x9b\\x0d\\u202e\\ud800\\U000e0041\\x7f\n"
    assert printable(printable(HOSTILE)) == printable(HOSTILE) and not left_in(printable(HOSTILE))
    assert cut("abcdef", 3) == "abc… (3 more characters)" and cut("abc", 3) == "abc"


def test_everything_that_is_printed_goes_through_the_guard(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with guarded(), guarded():
        print(HOSTILE)
        print(HOSTILE, file=sys.stderr)
        sys.stderr.writelines([HOSTILE, "x" * (2 * MOST)])
        assert bare(sys.stdout) is before[0] and guard(sys.stdout) is sys.stdout
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr) == before
    out, err = capsys.readouterr()
    assert not left_in(out) and not left_in(err)
    assert SEEN in out and err.count(SEEN) == 2 and f"… ({MOST:,} more characters)" in err


def shown(*parts: object, colours: bool = True) -> str:
    screen = Screen() if colours else io.StringIO()
    console = Terminal(screen, width=300, color_system="standard" if colours else None)
    for part in parts:
        console.print(part)
    return screen.getvalue()


@pytest.mark.parametrize("colours", [True, False])
def test_a_console_shows_data_and_obeys_its_program(colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    grid = Table("name", HOSTILE, title=HOSTILE)
    grid.add_row(HOSTILE, Text(HOSTILE, style="green"))
    text = shown(grid, HOSTILE, Text.assemble((HOSTILE, "bold"), " after"), colours=colours)
    assert not left_in(text, styles=colours)
    assert text.count(SEEN) == 6 and "[bold]loud[/bold] :smile:" in text, "no markup, no emoji"
    assert ("\x1b[32m" in text and "\x1b[1m" in text) == colours


def test_a_link_in_a_name_is_no_link() -> None:
    assert "\x1b]8" not in shown("[link=http://example.com]here[/link]", Text("\x1b]8;;http://example.com\x1b\\here"))


def test_a_long_text_is_cut_and_an_escaped_one_is_wrapped_whole() -> None:
    assert f"… ({MOST:,} more characters)" in shown("x" * (2 * MOST)).replace("\n", "")
    narrow = Screen()
    Terminal(narrow, width=20, color_system=None).print(Text("\x1b" * 20))
    assert narrow.getvalue().replace("\n", "") == "\\x1b" * 20


def test_what_is_said_beside_a_progress_bar_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    # pytest would keep the record, and the processes that run tests cannot send each other a lone surrogate.
    monkeypatch.setattr(logging.getLogger("tapml.remote"), "propagate", False)
    with guarded(), Progress(f"test {HOSTILE}") as progress:
        progress("stage", 1, 2)
        logging.getLogger("tapml.remote").warning("%s", HOSTILE)
        print(HOSTILE, file=sys.stderr)
        print(HOSTILE)
    assert sys.stderr is screen
    assert not left_in(screen.getvalue(), styles=True, bars=True)
    assert screen.getvalue().count(SEEN) >= 3
