"""What coordinator and agent say to each other: one JSON object a line, and which versions of it there are.

    1   requests, results, errors, progress
    2   an agent also says that a verb moves ("moved"); `lock` and `epoch` answer with an epoch, which calls that change
        rights carry (storkit.tech.grants)

A hello names the oldest version that its side speaks as "hello", and both ends as "protocols"; the agent answers with
the newest that both speak. Neighbouring versions of storkit share one, so that hosts are upgraded one at a time.
Records may gain fields: what is not known on one side is left out of what it reads, and what has its default value in
the first line is not sent, so that an older side does not stumble over it.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, BinaryIO

import storkit
from storkit.core import codec
from storkit.core.errors import Unsupported

OLDEST, NEWEST = 1, 2

LINE_MAX = 64 << 20
"""Bytes of one line: a hundred times the answer of a pool with ten thousand volumes."""

HOOK_LINE_MAX = 1 << 18
"""Bytes of one line of who asks for hooks: what it may ask for is small."""


class Malformed(ValueError):
    """A line that is none of the protocol; its text says why."""


def hello(speaks: int = OLDEST) -> dict[str, Any]:
    """The first line of either side."""
    return {"hello": speaks, "protocols": [OLDEST, NEWEST], "version": storkit.__version__}


def common(said: dict[str, Any], where: str) -> int:
    """The newest version that this side and the one that said hello speak. Raises Malformed; Unsupported: none."""
    first = said.get("hello")
    ends = said.get("protocols", [first, first])
    if not isinstance(ends, list) or len(ends) != 2 or not all(type(end) is int and end > 0 for end in ends):
        raise Malformed(f"a hello without versions: {shown(said)}")
    if ends[0] > NEWEST:
        raise Unsupported(f"storkit on {where} is too new for this one: {_spoken(ends)}", "upgrade storkit here")
    if ends[1] < OLDEST:
        raise Unsupported(f"storkit on {where} is too old for this one: {_spoken(ends)}", f"upgrade storkit on {where}")
    return min(int(ends[1]), NEWEST)


def _spoken(ends: list[int]) -> str:
    return f"it speaks versions {ends[0]} to {ends[1]} of the agent's protocol, this one {OLDEST} to {NEWEST}"


def agreed(said: dict[str, Any]) -> int:
    """What an agent's hello has chosen of what it was offered. Raises Malformed."""
    chosen = said.get("hello")
    if type(chosen) is not int or not OLDEST <= chosen <= NEWEST:
        raise Malformed(f"a hello in a version that was not offered: {shown(said)}")
    return chosen


def for_version_1(verb: str, args: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a verb without what 0.1.0 stumbles over: it takes no keys that it does not know."""
    left = {name: value for name, value in args.items() if (verb, name) not in _SINCE_2}
    for name, keys in _RECORDS_SINCE_2.items():
        if isinstance(value := left.get(name), list):
            left[name] = [_without(record, keys) for record in value]
        elif name in left:
            left[name] = _without(value, keys)
    return left


_SINCE_2 = {
    *(("receive", name) for name in ("source", "told")),
    ("check", "arrives"),
    ("set_writers", "hold"),
    ("set_writers", "fills"),
    ("define", "secrets"),
    ("resize", "served"),
    ("refill", "rate"),
    ("keep", "carried"),
    ("capacity", "volumes"),
}
"""Arguments that only say more exactly what is asked for. A hold goes with volumes that have it: those are refused."""
_OF_VOLUMES = ("hold", "generation", "was", "checksum", "manager", "term")
_RECORDS_SINCE_2 = {
    "clients": ("told",),
    "volumes": _OF_VOLUMES,
    "volume": _OF_VOLUMES,
    "source": _OF_VOLUMES,
    "guest": ("document", "local", "agent"),
}
"""The arguments that are records, or lists of them, and what these have only since protocol 2."""


def _without(record: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(record, dict):
        return record
    if record.get("hold"):
        # Its host would serve it as if nobody slept on it.
        message = f"volume {record.get('name')} is held for a sleeping guest, which an older storkit knows nothing of"
        raise Unsupported(message, "upgrade storkit on its hosts")
    if record.get("term"):
        message = f"volume {record.get('name')} is of a pool with several managers, which an older storkit knows not"
        raise Unsupported(message, "upgrade storkit on its hosts")
    if record.get("document"):
        # Its host would run another guest: what the template makes of the little that the record says.
        message = f"guest {record.get('name')} has a document of its own, which an older storkit knows nothing of"
        raise Unsupported(message, "upgrade storkit on its hosts")
    return {name: value for name, value in record.items() if name not in keys}


def read_line(stream: BinaryIO, longest: int = LINE_MAX) -> bytes:
    """The next line; empty at the end of the stream, which may cut a line short. Raises Malformed if it is too long."""
    line = stream.readline(longest + 1)
    if line.endswith(b"\n"):
        return line
    if len(line) > longest:
        raise Malformed(f"a line of more than {longest >> 10} KiB")
    return b""


def parse(line: bytes) -> dict[str, Any]:
    """A line as the object that it has to be. Raises Malformed."""
    try:
        value = json.loads(line.decode())
    except RecursionError:
        raise Malformed("JSON that is nested too deep") from None
    except ValueError as error:
        what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "no JSON"
        raise Malformed(f"{what}: {line.strip()[:60]!r}") from None
    if not isinstance(value, dict):
        raise Malformed(f"no object: {shown(value)}")
    return value


def shown(value: Any) -> str:
    """The beginning of a value, for messages."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def told(record: Any) -> dict[str, Any]:
    """A record for the other side's first line, without what has its default value."""
    found: dict[str, Any] = codec.dump(record, reveal=True)
    for field in dataclasses.fields(record):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if getattr(record, field.name) == default:
            del found[field.name]
    return found
