"""What names a thing: UUIDs, names, clients, paths, addresses. Each is a type that storkit.core.codec checks wherever a
record is read, so that nothing which another host, a sidecar or a journal says is joined into a path, or given to a
program, without having been looked at.

A type here is `str` or `int` with a Check (typing.Annotated): to a type checker it is the plain type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from storkit.core.errors import UsageError
from storkit.core.units import MAX_SIZE

NAME_MAX = 63
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*", re.ASCII)
_PORTAL = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_][A-Za-z0-9_.%-]*)(:[0-9]{1,5})?", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]*", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}", re.ASCII)
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What changes how the text around it is shown or read: control characters (C0, C1), what turns the direction of
writing round (Unicode UAX #9), line separators, and halves of characters that no encoding has."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a value must be beside its type: `test` raises UsageError otherwise. `empty`: or nothing at all."""

    test: Callable[[Any], Any]
    empty: bool = False

    def __call__(self, value: Any) -> None:
        if not (self.empty and value == ""):
            self.test(value)


def check_name(what: str, name: str) -> str:
    """`name`, if it can name a volume, guest, host, pool or fleet on every backend; UsageError otherwise.

    The common ground of LVM names (lvm(8)), NBD export names, IQN parts, Xen domain names and file names.
    """
    hint = f"use 1 to {NAME_MAX} of the letters A-Z a-z, digits, '.', '_' and '-', starting with a letter or digit"
    if not name:
        raise UsageError(f"a {what} needs a name", hint)
    if len(name) > NAME_MAX:
        raise UsageError(f"{what} name {_shown(name)} is {len(name)} characters long, {NAME_MAX} at most", hint)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{_shown(name)} cannot name a {what}", hint)
    if ".." in name:
        raise UsageError(f"{_shown(name)} cannot name a {what}: '..' is not allowed", hint)
    return name


def check_uuid(text: str) -> str:
    """A UUID in its canonical form, lower-case with dashes: it is part of file names. UsageError otherwise."""
    if not _UUID.fullmatch(text):
        raise UsageError(f"{_shown(text)} is no UUID in lower case", "uuidgen makes one")
    return text


def check_line(text: str) -> str:
    """One line of text that a terminal shows as it is. UsageError otherwise."""
    if CONTROL.search(text):
        raise UsageError(f"{_shown(text)} has a control character")
    if len(text) > _LINE_MAX:
        raise UsageError(f"{_shown(text)} is {len(text)} characters long, {_LINE_MAX} at most")
    return text


_LINE_MAX = 1 << 16


def check_path(text: str) -> str:
    """An absolute path that leads nowhere but where it says: no '..' in it. UsageError otherwise."""
    check_line(text)
    if not text.startswith("/"):
        raise UsageError(f"{_shown(text)} is no absolute path")
    if ".." in text.split("/"):
        raise UsageError(f"{_shown(text)} has '..' in it")
    return text


def url_problem(url: str) -> str:
    """What is wrong with a host URL; nothing if it is one."""
    if any(not character.isprintable() or character.isspace() for character in url):
        return "it has a space or a control character"
    if url == "local":
        return ""
    if url.startswith("local:"):
        if not url.startswith("local:/"):
            return "the directory must be an absolute path"
        # Its state, its run directory and its devices are below it: /dev and /run themselves they are never.
        return "" if url.removeprefix("local:").strip("/.") else "the directory cannot be the root of everything"
    if not url.startswith("ssh://"):
        return f"{url!r} has no known scheme"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return str(error)
    if not parts.hostname or parts.hostname.startswith("-") or (parts.username or "").startswith("-"):
        return "it names no host"
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.password or port == 0:
        return "only user, host and port belong into it"
    return ""


_GUEST = "guest:"


def guest_client(name: str) -> str:
    """The name that a guest has as the client of an export, as hosts have theirs: no host can be named so."""
    return _GUEST + name


def guest_of(client: str) -> str:
    """The guest that a client is; empty: it is a host."""
    return client.removeprefix(_GUEST) if client.startswith(_GUEST) else ""


def check_host(text: str) -> str:
    """A host's name in the inventory, or its URL. UsageError otherwise."""
    if ":" not in text:
        return check_name("host", text)
    problem = url_problem(text)
    if not problem and text.startswith("local:") and ".." in text.split("/"):
        problem = "the directory has '..' in it"
    if problem:
        raise UsageError(f"{_shown(text)} is neither a host's name nor its URL: {problem}")
    return text


def check_client(text: str) -> str:
    """Whom a volume is exported to: a host, or guest:NAME. UsageError otherwise."""
    if text.startswith(_GUEST):
        check_name("guest", guest_of(text))
        return text
    return check_host(text)


def _check_words(text: str) -> None:
    if len(text) > _WORDS_MAX:
        raise UsageError(f"{_shown(text)} is {len(text)} characters long, {_WORDS_MAX} at most")


_WORDS_MAX = 1 << 20


def _matches(pattern: re.Pattern[str], what: str, longest: int = 255) -> Callable[[str], str]:
    def check(text: str) -> str:
        if len(text) > longest or not pattern.fullmatch(text):
            raise UsageError(f"{_shown(text)} is no {what}")
        return text

    return check


def _between(least: int, most: int, what: str) -> Callable[[int], int]:
    def check(number: int) -> int:
        if not least <= number <= most:
            raise UsageError(f"{number if abs(number) < 10**30 else 'a number of many digits'} is no {what}")
        return number

    return check


def several(names: Sequence[str]) -> list[str]:
    """`names` as a list. UsageError for a single text: Python would take it for the list of its letters, and each may
    be the name of something."""
    if isinstance(names, str):
        raise UsageError(f"{_shown(names)} is one name, and a list of them is wanted", f"write [{_shown(names)}]")
    return list(names)


def check_at_once(number: int) -> int:
    """How many things may be done at the same time: one or more. UsageError otherwise."""
    if number < 1:
        raise UsageError(f"{number} cannot be done at the same time", "write 1, or more")
    return number


def check_seconds(seconds: float) -> float:
    """A time that somebody waits: none, or up to a week. UsageError otherwise, for what is no number (NaN) as well."""
    if not 0 <= seconds <= _WEEK:
        raise UsageError(f"{seconds!r:.40} is no time to wait for", f"write seconds, from 0 to {_WEEK}")
    return seconds


_WEEK = 7 * 24 * 3600


def _check_address(text: str) -> str:
    if ".." in text or not _ADDRESS.fullmatch(text) or len(text) > 255:
        raise UsageError(f"{_shown(text)} is no address")
    return text


def check_secret(secret: Any) -> None:
    """A secret is a line of a file: one with a line break in it would be two. It is never shown."""
    if CONTROL.search(secret.reveal()):
        raise UsageError("it has a control character")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


Uuid = Annotated[str, Check(check_uuid)]
MaybeUuid = Annotated[str, Check(check_uuid, empty=True)]
VolumeName = Annotated[str, Check(lambda name: check_name("volume", name))]
PoolName = Annotated[str, Check(lambda name: check_name("pool", name))]
MaybePool = Annotated[str, Check(lambda name: check_name("pool", name), empty=True)]
GuestName = Annotated[str, Check(lambda name: check_name("guest", name))]
HostName = Annotated[str, Check(check_host)]
MaybeHost = Annotated[str, Check(check_host, empty=True)]
ClientName = Annotated[str, Check(check_client)]
"""A host's name in the inventory, a host's URL, or guest:NAME."""
Size = Annotated[int, Check(_between(0, MAX_SIZE, "size in bytes"))]
Count = Annotated[int, Check(_between(0, 2**80, "count"))]
Seconds = Annotated[float, Check(check_seconds)]
Port = Annotated[int, Check(_between(0, 65535, "port"))]
"""0: none."""
MaybePath = Annotated[str, Check(check_path, empty=True)]
AbsolutePath = Annotated[str, Check(check_path)]
MaybeAddress = Annotated[str, Check(_check_address, empty=True)]
"""A host name or an IP address."""
Address = Annotated[str, Check(_check_address)]
Portal = Annotated[str, Check(_matches(_PORTAL, "ADDRESS:PORT"))]
Word = Annotated[str, Check(_matches(_WORD, "word"), empty=True)]
"""Letters, digits and `._+-`: the name of a technology, a format, a machine type."""
Line = Annotated[str, Check(check_line)]
"""One line of text without control characters."""
Mac = Annotated[str, Check(_matches(_MAC, "MAC address"))]
"""In lower case, with colons."""
Hex = Annotated[str, Check(_matches(_HEX, "hexadecimal number"))]
Decimal = Annotated[str, Check(_matches(_DECIMAL, "offset"))]
Base64 = Annotated[str, Check(_matches(_BASE64, "Base64", longest=1 << 25))]
"""Bytes, as RFC 4648 (4) writes them in text."""
Words = Annotated[str, Check(_check_words)]
"""What somebody has to say to people, whatever it is: it names nothing, and is shown by storkit.cli.output alone."""
