"""The one QEMU command in a text: in a script, as somebody typed it, as `virsh domxml-to-native` or a log prints it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from storkit.core.errors import StorkitError, UsageError, raise_problems
from storkit.guests.documents.shell import MOST_WORDS, Word, commands

ALONE = frozenset({
    "-S", "-alt-grab", "-async-teardown", "-audio-help", "-ctrl-grab", "-curses", "-daemonize", "-enable-fips",
    "-enable-kvm", "-enable-sync-profile", "-full-screen", "-h", "-help", "-mem-prealloc", "-no-acpi",
    "-no-fd-bootchk", "-no-frame", "-no-hpet", "-no-kvm", "-no-kvm-irqchip", "-no-kvm-pit", "-no-kvm-pit-reinjection",
    "-no-quit", "-no-reboot", "-no-shutdown", "-no-user-config", "-nodefaults", "-nodefconfig", "-nographic",
    "-old-param", "-only-migratable", "-portrait", "-preconfig", "-s", "-sdl", "-semihosting", "-singlestep",
    "-snapshot", "-tdf", "-usb", "-version", "-win2k-hack", "-xen-attach", "-xen-domid-restrict",
})  # fmt: skip
"""The options that take no argument: of QEMU 7.2 (qemu-system-x86_64 -help), and of older ones."""
_PROGRAM = re.compile(r"(?:.*/)?(?:qemu-system-[\w-]+|qemu-kvm|qemu|kvm)")
_BEFORE = re.compile(r"exec|sudo|env|nohup|nice|setsid|command|[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
"""What may stand before the program, and changes nothing for the guest."""
_LIKELY = re.compile(
    r"""(?:^|[;&|])[ \t]*(?:(?:[A-Za-z_]\w*=(?:"[^"]*"|'[^']*'|[^\s"'])*|exec|sudo|env|nohup)[ \t]+)*"""
    r"""(?:[^\s;&|"'=]*/)?(?:qemu-system-|qemu-kvm\b|kvm\s)""",
    re.MULTILINE,
)
_IDLE = re.compile(r"set|cd|export|echo|printf|exit|wait|sleep|true|:|shopt|ulimit|umask|trap|\[|test|\d{4}-\d\d-\d\d")
"""Commands that do nothing for the guest; a date begins a line of libvirt's log."""


@dataclass(frozen=True, slots=True)
class Command:
    """A QEMU command."""

    program: str
    """As it is written; empty: the arguments stand alone."""
    arguments: list[Word]
    others: list[Word]
    """The first words of other commands that the text has, of those that seem to do something."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An option of a command, and its argument."""

    option: str
    """With one dash; empty: an image given alone."""
    word: Word
    """The option as it stands there; of an image given alone the image."""
    value: Word | None

    @property
    def text(self) -> str:
        """The argument; empty: there is none."""
        return self.value.text if self.value else ""

    @property
    def line(self) -> int:
        return (self.value or self.word).line


def likely(text: str) -> bool:
    """Whether a QEMU command seems to stand in a text."""
    return text.startswith("#!") or bool(_LIKELY.search(text.replace("\\\r\n", " ").replace("\\\n", "")))


def command(text: str) -> Command:
    """The one QEMU command in a text: its arguments one a line if its first line is an option alone, else as a shell
    takes them apart. Raises UsageError: there is none, or more than one, or part of it is known to a shell alone."""
    if re.match(r"[\r\n]*-[a-zA-Z0-9-]+\r?(?:\n|$)", text):
        return Command("", _listed(text), [])
    found: list[tuple[str, list[Word], bool]] = []
    others: list[Word] = []
    for words, always in commands(text):
        program, arguments = _own(words)
        if program or arguments:
            found.append((program, arguments, always))
        elif not _IDLE.fullmatch(words[0].text.partition("T")[0]):
            others.append(words[0])
    if len(found) > 1:
        names = ", ".join(program or "-" for program, _, _ in found)
        raise UsageError(f"there are {len(found)} commands of QEMU here: {names}", "put each into a file of its own")
    if not found:
        raise UsageError("there is no command of QEMU here", "write it as it is typed: qemu-system-x86_64 ...")
    program, arguments, always = found[0]
    line = arguments[0].line if arguments else 1
    if not always:
        raise UsageError(f"line {line}: the command stands in an if or a loop", "write the command alone")
    problems: list[StorkitError] = [
        UsageError(f"line {word.line}: only a shell knows what this is: {word.problem}", "write what it stands for")
        for word in arguments
        if word.problem
    ]
    raise_problems(problems)
    return Command(program, arguments, others)


def arguments(text: str) -> list[str]:
    """The arguments of the one QEMU command in a text. Raises UsageError, as `command`."""
    return [word.text for word in command(text).arguments]


def pairs(words: list[Word]) -> list[Pair]:
    """The options of a command, each with its argument. Raises UsageError: the last one lacks it."""
    found: list[Pair] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        option = "-" + word.text.lstrip("-") if word.text.startswith("-") else ""
        if not option:
            found.append(Pair("", word, word))
        elif option in ALONE:
            found.append(Pair(option, word, None))
        elif position == len(words):
            raise UsageError(f"line {word.line}: {option} lacks its argument", "see qemu(1)")
        else:
            found.append(Pair(option, word, words[position]))
            position += 1
    return found


def _listed(text: str) -> list[Word]:
    words: list[Word] = []
    position = 0
    for number, line in enumerate(text.split("\n"), 1):
        word = line.rstrip("\r")
        if word:
            words.append(Word(word, number, position, position + len(word), raw=True))
        if len(words) > MOST_WORDS:
            raise UsageError(f"line {number}: the command has more than {MOST_WORDS} words", "check what the file is")
        position += len(line) + 1
    return words


def _own(words: list[Word]) -> tuple[str, list[Word]]:
    """The program and the arguments of a command, if that is QEMU's. Raises UsageError: another program starts it."""
    rest = words
    while rest and _BEFORE.fullmatch(rest[0].text):
        rest = rest[1:]
    if rest and _PROGRAM.fullmatch(rest[0].text):
        return rest[0].text, rest[1:]
    if rest and rest == words and rest[0].text.startswith("-"):
        return "", words  # the arguments alone
    for number, word in enumerate(rest):
        if number and PurePath(word.text).name.startswith("qemu-system-") and "=" not in word.text:
            what = " ".join(each.text for each in words[: words.index(word)])
            message = f"line {word.line}: QEMU is started by another program here: {what}"
            raise UsageError(message, "write the command without it: storkit starts QEMU itself")
    return "", []
