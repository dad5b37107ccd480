"""The one QEMU command in a text: in a script, as somebody typed it, as `virsh domxml-to-native` or a log prints it."""

from __future__ import annotations

import re
import shlex

from storkit.core.errors import UsageError

_PROGRAM = re.compile(r"(?:.*/)?(?:qemu-system-[\w-]+|qemu-kvm|qemu|kvm)")
_BEFORE = re.compile(r"exec|sudo|env|nohup|nice|[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_LIKELY = re.compile(
    r"""(?:^|[;&|])[ \t]*(?:(?:[A-Za-z_]\w*=(?:"[^"]*"|'[^']*'|[^\s"'])*|exec|sudo|env|nohup)[ \t]+)*"""
    r"""(?:[^\s;&|"'=]*/)?(?:qemu-system-|qemu-kvm\b|kvm\s)""",
    re.MULTILINE,
)
_REDIRECTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*'|\\.)|(?<=\s)\d?(?:>>?|<)&?\s*[^\s;&|]+""", re.DOTALL)
"""A quoted text, or where the output goes, which is nothing of the guest's: `2>&1`, `>/dev/null`."""
_MARKS = re.compile(r"[;&|()<>\n]+")


def likely(text: str) -> bool:
    """Whether a QEMU command seems to stand in a text."""
    return text.startswith("#!") or bool(_LIKELY.search(_joined(text)))


def arguments(text: str) -> list[str]:
    """The arguments of the one QEMU command in a text: one a line if its first line is an option alone, else as a shell
    takes them apart. Raises UsageError: there is none, or more than one."""
    lines = [line for line in text.split("\n") if line]
    if lines and re.fullmatch(r"-[a-zA-Z0-9-]+", lines[0]):
        return lines
    found = [words for words in map(_own, _commands(_joined(text))) if words]
    if len(found) > 1:
        names = ", ".join(words[0] for words in found)
        raise UsageError(f"there are {len(found)} commands of QEMU here: {names}", "put each into a file of its own")
    if not found:
        raise UsageError("there is no command of QEMU here", "write it as it is typed: qemu-system-x86_64 ...")
    return found[0][1:]


def _joined(text: str) -> str:
    """The text with lines joined that end in a backslash."""
    return text.replace("\\\r\n", " ").replace("\\\n", "")


def _commands(text: str) -> list[list[str]]:
    plain = _REDIRECTED.sub(lambda match: match[1] or " ", text)
    lexer = shlex.shlex(plain, posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace = " \t\r"
    lexer.commenters = "#"
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if not _MARKS.fullmatch(word):
                commands[-1].append(word)
            else:
                commands.append([])
    except ValueError as error:
        raise UsageError(f"the command cannot be taken apart: {error}", "quote it as for a shell") from None
    return commands


def _own(words: list[str]) -> list[str]:
    """A command from its program on, if that is QEMU."""
    while words and _BEFORE.fullmatch(words[0]):
        words = words[1:]
    if words and words[0].startswith("-"):
        return ["qemu", *words]  # the arguments alone
    return words if words and _PROGRAM.fullmatch(words[0]) else []
