"""The inventory's file, with a host more or one less: all else in it stays as its author wrote it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from storkit.core.errors import Conflict, UsageError
from storkit.core.host import config_directory
from storkit.core.inventory import Inventory, parse
from storkit.system import locks
from storkit.system.files import make_private, write_atomic
from storkit.system.timeouts import scaled

_PATIENCE = scaled(30.0)

_HEADER = re.compile(r"^[ \t]*\[{1,2}[ \t]*([^\]\n]*?)[ \t]*\]{1,2}[ \t]*(?:#.*)?\r?$", re.MULTILINE)


def file_of(inventory: Inventory) -> Path:
    """Where the inventory is, or would be."""
    return inventory.path or config_directory() / "inventory.toml"


def with_host(inventory: Inventory, name: str, url: str, address: str, state: str) -> str:
    """The text of the inventory with a host more, checked whole. Raises Conflict: there is one; UsageError."""
    path = file_of(inventory)
    if name in inventory.hosts:
        raise Conflict(f"there is a host {name} already: {inventory.hosts[name].url}", "storkit host list")
    text = _text(path)
    tables = [_table("local", "local")] if "local" in inventory.hosts and not _spans(text, "hosts.") else []
    tables.append(_table(name, url, address=address, state=state))
    new = "\n".join([*([text.rstrip("\r\n") + "\n"] if text else []), *tables])
    if "\r\n" in text:  # its author's line ends
        new = new.replace("\r\n", "\n").replace("\n", "\r\n")
    if text and name in parse(text, path).hosts:
        raise Conflict(f"there is a host {name} in {path} by now", "storkit host list")
    try:
        parse(new, path)
    except UsageError as error:
        if "twice" not in error.message:
            raise
        message = f"the hosts of {path} are no tables of their own"
        raise UsageError(message, f"write host {name} there yourself, then give this command again") from None
    return new


def without_host(inventory: Inventory, name: str) -> str:
    """The text of the inventory with a host less, checked whole. Raises UsageError: it has to be edited."""
    path = file_of(inventory)
    text = _text(path)
    by_hand = UsageError(
        f"host {name} has no table of its own in {path}", "take it out there, and see: storkit host list"
    )
    for start, end in reversed(_spans(text, f"hosts.{name}", whole=True)):
        text = text[:start] + text[end:]
    if not text:
        raise by_hand
    before = parse(_text(path), path)
    rest = {host: config for host, config in before.hosts.items() if host != name}
    if asdict(parse(text, path)) != asdict(replace(before, hosts=rest)):  # a pool is equal to no other one
        raise by_hand
    return text


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """While the file is read and written: of two commands on this machine neither loses what the other wrote."""
    make_private(state)
    lock = locks.acquire(state / "inventory.lock", "the inventory", wait=_PATIENCE)
    try:
        yield
    finally:
        lock.release(remove=True)


def write(inventory: Inventory, text: str) -> Path:
    """Keep a new text, durably, whoever's the file is, and where a link leads; the file."""
    path = file_of(inventory).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat() if path.exists() else None
    write_atomic(path, text.encode(), before.st_mode & 0o777 if before else 0o644)
    if before and os.geteuid() == 0:
        os.chown(path, before.st_uid, before.st_gid)
    return file_of(inventory)


def _text(path: Path) -> str:
    """The file as it is, with its own line ends; nothing if there is none."""
    return path.read_bytes().decode() if path.exists() else ""


def _table(name: str, url: str, **more: str) -> str:
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
    values = {"url": url, **{word: value for word, value in more.items() if value}}
    return "\n".join([f"[hosts.{key}]", *(f"{word} = {json.dumps(value)}" for word, value in values.items()), ""])


def _spans(text: str, name: str, whole: bool = False) -> list[tuple[int, int]]:
    """Where tables that begin with a name lie, each to its last key. `whole`: that table, and those below it."""
    headers = [(match.start(), match[1].replace('"', "").replace(" ", "")) for match in _HEADER.finditer(text)]
    ends = [start for start, _ in headers[1:]] + [len(text)] * bool(headers)
    found = list[tuple[int, int]]()
    for (start, header), end in zip(headers, ends, strict=True):
        mine = header == name or header.startswith(f"{name}.") if whole else header.startswith(name)
        if mine:
            # What is said before the next header is of that.
            lines = text[start:end].splitlines(keepends=True)
            while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
                end -= len(lines.pop())
            found.append((start, end))
    return found
