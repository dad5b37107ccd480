"""A shell's words (POSIX.1-2017, XCU 2), each with where it stands in its text, so that a part of one can be changed.

Variables that the text itself sets are put in; nothing is run. What only a shell that runs could say (`$(...)`, `$1`, a
variable that nobody sets, one that is set under a condition) is a problem of its word's.
"""

from __future__ import annotations

import re
import shlex
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from storkit.core.errors import UsageError
from storkit.guests.documents.edits import Edit

_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r]|\\\r\n)+)|(?P<join>\\\n)|(?P<mark>(?:[;|()\n]|&(?!>))+)
    |(?P<redirect>(?:\d*|&)(?:>>|>\||<>|<<<|<<-?|[<>])(?:&\d*-?)?)
    |(?P<single>'[^']*')|(?P<open>["])|(?P<escape>\\.)
    |(?P<variable>\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\}|[@*]))|(?P<other>\$(?:[({]|[0-9\#?!$-])|`)
    |(?P<bare>[^\s;&|()<>'"\\$`]+|\$|.)""",
    re.VERBOSE | re.DOTALL,
)
_QUOTED = re.compile(
    r"""(?P<close>["])|(?P<join>\\\n)|(?P<escape>\\["$`\\])
    |(?P<variable>\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\}|[@*]))|(?P<other>\$(?:[({]|[0-9\#?!$-])|`)
    |(?P<bare>[^"\\$`]+|.)""",
    re.VERBOSE | re.DOTALL,
)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_DECLARING = ("export", "readonly", "declare", "typeset", "local")
_OPENING = ("if", "for", "while", "until", "case", "select")
_CLOSING = ("fi", "done", "esac")
_LEADING = (*_OPENING, "then", "else", "elif", "do", "!", "{", "}", "time")
_PARENTHESIS, _BLANKS, _NEWLINE = re.compile(r"[()]"), re.compile(r"[ \t\n]+"), re.compile(r"\n")
_NOTHING = ('"$@"', '"${@}"', '"$*"')
MOST_WORDS = 16384
MOST_CHARACTERS = 4 << 20
"""That the variables of a text stand for, all in all."""


class Segment(NamedTuple):
    """Characters of a word that are written in one way."""

    at: int
    """The number of the first of them in the word, counted from 0."""
    size: int
    start: int
    end: int
    """Where they stand in the text."""
    quote: str
    """What they stand between: `'`, `"` or nothing."""
    plain: bool
    """Whether each stands for itself."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word, and where it stands."""

    text: str
    line: int
    start: int
    end: int
    segments: tuple[Segment, ...] = ()
    problem: str = ""
    """What in it only a shell could say."""
    shared: bool = False
    """Whether it is one of several that a variable stands for."""
    raw: bool = False
    """Whether it stands for itself, with no quoting."""

    def edits(self, changes: Iterable[Edit]) -> list[Edit]:
        """Changes of what the word stands for, as ones of the text. Raises UsageError: it cannot be changed alone."""
        changes = sorted(changes)
        if not changes:
            return []
        if self.shared:
            message = f"line {self.line}: {self.text!r} is one of several words that a variable stands for"
            raise UsageError(message, "write them where the variable stands")
        if self.raw:
            return [Edit(self.start + one.start, self.start + one.end, one.text) for one in changes]
        made = [self._edit(one) for one in changes]
        if all(made):
            return [one for one in made if one]
        text, position = "", 0
        for one in changes:
            text += self.text[position : one.start] + one.text
            position = one.end
        return [Edit(self.start, self.end, shlex.quote(text + self.text[position:]))]

    def _edit(self, change: Edit) -> Edit | None:
        """A change inside one kind of quoting; None for any other."""
        last = max(change.end - 1, change.start) if change.start < len(self.text) else change.start - 1
        first = change.start if change.start < len(self.text) else last
        touched = [each for each in self.segments if each.at <= last and each.at + each.size > first]
        if not touched or len({each.quote for each in touched}) > 1:
            return None
        start, end = _place(touched[0], change.start), _place(touched[-1], change.end)
        return None if start < 0 or end < 0 else Edit(start, end, _escaped(change.text, touched[0].quote))


def _place(segment: Segment, number: int) -> int:
    """Where a character of a word, or the end of one, stands in the text; -1: inside what stands for more than one."""
    if number == segment.at:
        return segment.start
    if number == segment.at + segment.size:
        return segment.end
    return segment.start + number - segment.at if segment.plain else -1


def _escaped(text: str, quote: str) -> str:
    if quote == "'":
        return text.replace("'", "'\\''")
    if quote == '"':
        return re.sub(r'(["$`\\])', r"\\\1", text)
    return shlex.quote(text) if text else ""


@dataclass(slots=True)
class _Scan:
    """Goes over the text once."""

    text: str
    lines: list[int]
    words: list[Word] = field(default_factory=list)
    """Of the command that is being read."""
    assigns: bool = True
    """Whether they only set variables so far."""
    variables: dict[str, str | None] = field(default_factory=dict)
    """None: its value is not known."""
    depth: int = 0
    perhaps: bool = False
    """Whether the command runs only if one before it has, or has not, worked."""
    redirected: bool = False
    put_in: int = 0
    count: int = 0
    begun: int = -1
    """Where the word that is being read begins; -1: none is."""
    until: int = 0
    pieces: list[str] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    size: int = 0
    quoted: bool = False
    problem: str = ""
    shared: bool = False

    def commands(self) -> Iterator[tuple[list[Word], bool]]:
        position = 0
        while position < len(self.text):
            if self.begun < 0 and self.text[position] == "#":
                end = self.text.find("\n", position)
                position = end if end >= 0 else len(self.text)
                continue
            match = _TOKEN.match(self.text, position)
            assert match, "the last alternative takes anything"
            kind, position = match.lastgroup, match.end()
            if kind in ("space", "mark", "redirect"):
                self._end()
            elif kind != "join":
                self.begun = match.start() if self.begun < 0 else self.begun
                position = self.until = self._part(match)
            if kind == "mark":
                yield from self._command()
                self.perhaps = "&&" in match[0] or "||" in match[0]
            elif kind == "redirect":
                self.redirected = not re.search(r"&[\d-]", match[0])
        self._end()
        yield from self._command()

    def _part(self, match: re.Match[str]) -> int:
        """Take a part of a word; where it ends."""
        if match.lastgroup == "open":
            self.quoted = True
            return self._quotation(match.end())
        if match.lastgroup == "single":
            self.quoted = True
            self._add(match.start() + 1, match.end() - 1, "'")
            return match.end()
        return self._piece(match, "")

    def _quotation(self, position: int) -> int:
        opened = position
        while position < len(self.text):
            match = _QUOTED.match(self.text, position)
            assert match, "the last alternative takes anything"
            if match.lastgroup == "close":
                return match.end()
            position = self._piece(match, '"')
        raise self._refused(opened, "a quotation does not end")

    def _piece(self, match: re.Match[str], quote: str) -> int:
        if match.lastgroup == "bare":
            if match[0] == "'" and not quote:
                raise self._refused(match.start(), "a quotation does not end")
            self._add(match.start(), match.end(), quote)
        elif match.lastgroup == "escape":
            self._add(match.start(), match.end(), quote, match[0][1])
        elif match.lastgroup == "variable":
            self._variable(match, quote)
        elif match.lastgroup == "other":
            end = self._skipped(match)
            self.problem = self.problem or self.text[match.start() : end]
            self._add(match.start(), end, quote, "?")
            return end
        return match.end()

    def _skipped(self, match: re.Match[str]) -> int:
        """Where what only a shell can say ends."""
        last = match[0][-1]
        if last == "(":
            depth = 0
            for each in _PARENTHESIS.finditer(self.text, match.start()):
                depth += 1 if each[0] == "(" else -1
                if not depth:
                    return each.end()
        elif last in "{`":
            end = self.text.find("}" if last == "{" else "`", match.end())
            if end >= 0:
                return end + 1
        else:
            return match.end()
        raise self._refused(match.start(), f"{match[0]} does not end")

    def _variable(self, match: re.Match[str], quote: str) -> None:
        name = match[0].strip("${}")
        value = "" if name in "@*" else self.variables.get(name)  # nothing is given to the text
        if value is None:
            why = "is not always the same" if name in self.variables else "is not set here"
            self.problem = self.problem or f"{match[0]} {why}"
            value = "?"
        self.put_in += len(value)
        if self.put_in > MOST_CHARACTERS:
            raise self._refused(match.start(), f"{match[0]} is put in too often")
        if quote or (self.assigns and self.pieces and _ASSIGNMENT.match(self.pieces[0])):
            self._add(match.start(), match.end(), quote, value)
            return
        parts = _BLANKS.split(value)
        for number, part in enumerate(parts):
            if number:
                self.until = match.end()
                self._end()
                self.begun = match.start()
            self.shared = self.shared or len(parts) > 1
            if part:
                self._add(match.start(), match.end(), quote, part)

    def _add(self, start: int, end: int, quote: str, value: str | None = None) -> None:
        text = self.text[start:end] if value is None else value
        self.segments.append(Segment(self.size, len(text), start, end, quote, value is None))
        self.pieces.append(text)
        self.size += len(text)

    def _end(self) -> None:
        """End the word that is being read. What is left of variables that stand for nothing is none."""
        nothing = not self.size and (not self.quoted or self.text[self.begun : self.until] in _NOTHING)
        if self.begun >= 0 and not self.redirected and not nothing:
            line = bisect_right(self.lines, self.begun) + 1
            segments = tuple(self.segments)
            word = Word("".join(self.pieces), line, self.begun, self.until, segments, self.problem, self.shared)
            self.words.append(word)
            self.count += 1
            if self.count > MOST_WORDS:
                raise self._refused(self.begun, f"it has more than {MOST_WORDS} words")
            self.assigns = self.assigns and (word.text in _DECLARING or bool(_ASSIGNMENT.match(word.text)))
        if self.begun >= 0:
            self.redirected = False
        self.pieces, self.segments, self.size, self.begun = [], [], 0, -1
        self.problem, self.shared, self.quoted = "", False, False

    def _command(self) -> Iterator[tuple[list[Word], bool]]:
        """The words since the last command, and whether they are run in any case."""
        words, self.words, self.assigns = self.words, [], True
        while words and words[0].text in (*_LEADING, *_CLOSING):
            self.depth += (words[0].text in _OPENING) - (words[0].text in _CLOSING)
            words = words[1:]
        if not words:
            return
        found = [_ASSIGNMENT.fullmatch(each.text) for each in (words[1:] if words[0].text in _DECLARING else words)]
        if not found or not all(found):
            yield words, self.depth <= 0
            return
        known = self.depth <= 0 and not self.perhaps
        for word, match in zip(words[-len(found) :], found, strict=True):
            assert match
            self.variables[match[1]] = match[2] if known and not word.problem else None

    def _refused(self, place: int, why: str) -> UsageError:
        line = bisect_right(self.lines, place) + 1
        return UsageError(f"line {line}: the command cannot be taken apart: {why}", "quote it as for a shell")


def commands(text: str) -> Iterator[tuple[list[Word], bool]]:
    """The commands of a text, without what only sets variables; and whether each is run in any case, or in an `if` or a
    loop. Raises UsageError."""
    yield from _Scan(text, [match.start() for match in _NEWLINE.finditer(text)]).commands()
