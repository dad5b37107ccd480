"""What the log of a host says of rights: each that is given, taken or fenced there, and who asked for it.

Who asked is the coordinator's own word, and what sshd knows of where it comes from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from storkit.core.errors import StorkitError
from storkit.system import syslog


@cache
def asker() -> str:
    """The person at this machine who gives a command."""
    import getpass  # an agent asks nobody

    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


def from_afar(said: str) -> str:
    """What a coordinator says of itself, and the address that sshd has it from."""
    address = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    return (said or "somebody") + (f", from {address}" if address else "")


def _of(volumes: Iterable[Any]) -> str:
    return ", ".join(f"{volume.name} ({volume.uuid})" for volume in volumes)


def _clients(clients: Iterable[Any]) -> str:
    return ", ".join(getattr(client, "name", client) for client in clients)


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "export": lambda args: f"let {_clients(args['clients'])} read {_of(args['volumes'])}",
    "unexport": lambda args: f"take {_of(args['volumes'])} from {_clients(args['clients'])}",
    "set_writers": lambda args: f"let {_clients(args['hosts']) or 'nobody'} write {_of(args['volumes'])}",
    "take_over": lambda args: f"serve {_of(args['volumes'])}, as a manager that is off has done",
    "bar": lambda args: f"let {args['manager']} serve nothing of the pool",
    "unbar": lambda args: f"let {args['manager']} serve again",
    "fence": lambda args: f"fence {args['client']}",
    "unfence": lambda args: f"unfence {args['client']}",
    "restore": lambda args: "give again what was given before",
    "hold": lambda args: f"let nobody write {_of(args['volumes'])} while its guest sleeps",
    "release": lambda args: f"end the sleep {args['hold']} of {_of(args['volumes'])}",
    "declare_off": lambda args: f"take {args['client']} for off, by the word of {args['by']}",
    "drain": lambda args: f"take no guests, by the word of {args['by']}",
    "undrain": lambda args: "take guests again",
    "withdraw_off": lambda args: f"take {args['client']} for off no longer",
}


def words(target: str, verb: str, args: dict[str, Any]) -> str:
    """What a verb does to rights; empty: nothing."""
    kind, _, name = target.partition(":")
    if kind not in ("pool", "transport", "host") or verb not in _WORDS:
        return ""
    return _WORDS[verb](args) + (f" by {name}" if kind == "transport" else "")


def _restored(exports: Iterable[Any]) -> str:
    """Who has what after a `restore`; empty: nobody, and there is nothing to log."""
    rights = {(each.client, each.writable, each.volume, each.uuid) for each in exports if each.live}
    return ", ".join(
        f"{client} {'write' if writes else 'read'} {volume} ({uuid})" for client, writes, volume, uuid in sorted(rights)
    )


@contextmanager
def logged(target: str, verb: str, args: dict[str, Any], asked: str) -> Iterator[Callable[[Any], None]]:
    """Log what a verb has done to rights, also when it failed: it may have come half-way. Its result is told to the
    function that is yielded."""
    said = words(target, verb, args)

    def told(result: Any) -> None:
        nonlocal said
        if said and verb == "restore":
            again = _restored(result)
            said = f"let again {again} by {target.partition(':')[2]}" if again else ""

    try:
        yield told
    except StorkitError as error:
        if said:
            syslog.log(f"{said}: FAILED: {error.message}; asked by {asked}")
        raise
    if said:
        syslog.log(f"{said}; asked by {asked}")
