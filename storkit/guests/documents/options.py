"""The argument of a QEMU option, `key=value,key=value` or JSON (qemu(1)), taken apart into keys with dots, each with
where it stands; and what of it must change for other values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from storkit.core.errors import UsageError
from storkit.core.units import parse_size
from storkit.guests.documents.edits import Edit
from storkit.guests.quoting import quote_json, quote_option

_PAIR = re.compile(r"((?:[^,]|,,)+)(?:,(?!,)|$)")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
_BLANK = re.compile(r"\s*")
_SCALAR = re.compile(r"[^\s,\]}]+")
_DEEPEST, _MOST = 32, 1024


@dataclass(frozen=True, slots=True)
class Key:
    """A key with its value."""

    key: str
    value: str
    first: int
    """Where it begins with its key."""
    start: int
    end: int
    """Where its value stands."""
    leaf: bool = True
    """Whether it has no parts of its own."""
    bare: bool = False
    """Whether the key is not written."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An option's argument."""

    text: str
    parts: list[Key]
    json: bool

    def get(self, key: str) -> str:
        """A key's value; empty if it has none."""
        found = self.part(key)
        return found.value if found and found.leaf else ""

    def part(self, key: str) -> Key | None:
        """A key with its value: the last, which is what QEMU takes."""
        return next((each for each in reversed(self.parts) if each.key == key), None)

    def below(self, prefix: str) -> dict[str, list[Key]]:
        """The parts below a prefix, which ends in a dot, by the next word of their keys."""
        found: dict[str, list[Key]] = {}
        for each in self.parts:
            if each.key.startswith(prefix) and each.key != prefix:
                name, dot, _ = each.key[len(prefix) :].partition(".")
                if not (dot and self.json):  # its whole is there
                    found.setdefault(name, []).append(each)
        return found

    def replaced(self, prefix: str, old: list[Key], new: Mapping[str, Any]) -> Iterator[Edit]:
        """Put these values, below a prefix, in the place of parts of it, of which there is at least one."""
        first, *others = sorted(old, key=lambda part: part.first)
        text = self._written(prefix, new)
        yield Edit(first.first, first.end, text)
        for each in others:
            yield self._without(each)

    def with_value(self, part: Key, value: str) -> Edit:
        """Put another value in the place of a part's."""
        return Edit(part.start, part.end, quote_json(value) if self.json else quote_option(value))

    def added(self, after: Key, prefix: str, new: Mapping[str, Any]) -> Edit:
        """Put these values behind a part."""
        return Edit(after.end, after.end, f",{self._written(prefix, new)}")

    def without(self, parts: list[Key]) -> Iterator[Edit]:
        """Take parts out, of which none is the first."""
        yield from (self._without(each) for each in parts)

    def _written(self, prefix: str, new: Mapping[str, Any]) -> str:
        if self.json:
            return quote_json(dict(new))[1:-1]
        return written(prefix, new)

    def _without(self, part: Key) -> Edit:
        comma = self.text.rfind(",", 0, part.first)
        return Edit(comma, part.end, "")


def memory_size(text: str) -> int:
    """The bytes of `-m size=`: QEMU knows one letter, always a power of 1024, and MiB without it (util/cutils.c,
    qemu_strtosz_MiB). Raises UsageError."""
    match = re.fullmatch(r"([0-9.]+)([BKMGTPE]?)", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise UsageError(f"-m {text}: {text!r} is not a size of QEMU's", "write -m 512M or -m 2G")
    return parse_size(match[1] + (match[2] or "M"))


def read(text: str, first: str = "") -> Argument:
    """Take an argument apart. `first` is the key that the first word may leave out. Raises UsageError."""
    if text.startswith("{"):
        parts: list[Key] = []
        if _BLANK.match(text, _value(text, 0, "", parts, 0)).end() != len(text):  # type: ignore[union-attr]
            raise _no_json(text)
        return Argument(text, _few(parts), True)
    parts = []
    for match in _PAIR.finditer(text):
        key, equals, _ = match[1].partition("=")
        start = match.start() + len(key) + 1 if equals else match.start()
        if not equals:
            key, value = (first, match[1]) if first and not parts else (match[1], "on")
        else:
            value = match[1][len(key) + 1 :]
        parts.append(Key(key.replace(",,", ","), value.replace(",,", ","), match.start(), start, match.end(1),
                          bare=not equals))  # fmt: skip
    return Argument(text, _few(parts), False)


def secret(text: str) -> tuple[Argument, Key] | None:
    """An option's argument that has a secret in it, and the key of that: `secret,id=s,data=...`, `password=...`."""
    try:
        argument = read(text, "qom-type")
    except UsageError:
        return None  # which is no argument, but a text in braces
    key = argument.part("data") if argument.get("qom-type").startswith("secret") else argument.part("password")
    switch = key is not None and key.key == "password" and key.value in ("on", "off")
    return (argument, key) if key is not None and key.value and not switch else None


def written(prefix: str, values: Mapping[str, Any]) -> str:
    """Values, below a prefix, as `key=value,key=value`."""
    return ",".join(f"{key}={quote_option(value)}" for key, value in _flat(prefix, values))


def _few(parts: list[Key]) -> list[Key]:
    if len(parts) > _MOST:
        raise UsageError(f"an argument has more than {_MOST} keys", "check what the file is")
    return parts


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", {True: "on", False: "off"}.get(value, str(value))


def _value(text: str, position: int, key: str, parts: list[Key], depth: int) -> int:
    """Read a value of JSON and its parts; where it ends. QEMU takes strings in single quotes as well."""
    position = _BLANK.match(text, position).end()  # type: ignore[union-attr]
    opening = text[position : position + 1]
    if depth > _DEEPEST or opening not in ("{", "["):
        raise _no_json(text)
    position = _BLANK.match(text, position + 1).end()  # type: ignore[union-attr]
    number = 0
    closing = "}" if opening == "{" else "]"
    while text[position : position + 1] != closing:
        if number:
            if text[position : position + 1] != ",":
                raise _no_json(text)
            position = _BLANK.match(text, position + 1).end()  # type: ignore[union-attr]
        first, name = position, str(number)
        if opening == "{":
            match = _STRING.match(text, position)
            colon = _BLANK.match(text, match.end()).end() if match else 0  # type: ignore[union-attr]
            if match is None or text[colon : colon + 1] != ":":
                raise _no_json(text)
            name, position = _string(match[0]), _BLANK.match(text, colon + 1).end()  # type: ignore[union-attr]
        whole = f"{key}.{name}" if key else name
        start = position
        if text[position : position + 1] in ("{", "["):
            at = len(parts)
            position = _value(text, position, whole, parts, depth + 1)
            parts.insert(at, Key(whole, text[start:position], first, start, position, leaf=False))
        else:
            match = _STRING.match(text, position) or _SCALAR.match(text, position)
            if match is None:
                raise _no_json(text)
            position = match.end()
            value = (
                _string(match[0]) if match[0][0] in "\"'" else {"true": "on", "false": "off"}.get(match[0], match[0])
            )
            parts.append(Key(whole, value, first, start, position))
        position = _BLANK.match(text, position).end()  # type: ignore[union-attr]
        number += 1
    return position + 1


def _string(written: str) -> str:
    inner = written[1:-1]
    if written[0] == "'":
        inner = re.sub(r'\\.|"', lambda match: {"\\'": "'", '"': '\\"'}.get(match[0], match[0]), inner)
    try:
        return str(json.loads(f'"{inner}"', strict=False))
    except ValueError:
        raise _no_json(written) from None


def _no_json(text: str) -> UsageError:
    return UsageError(f"{text[:60]!r} is no JSON", "see qemu(1)")
