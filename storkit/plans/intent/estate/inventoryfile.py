"""The inventory's file, with a host more or one less: all else in it stays as its author wrote it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

from storkit.core.errors import Conflict, UsageError
from storkit.core.host import config_directory
from storkit.core.inventory import Inventory, parse
from storkit.system.files import write_atomic

_HEADER = re.compile(r"^[ \t]*\[{1,2}[ \t]*([^\]\n]*?)[ \t]*\]{1,2}[ \t]*(?:#.*)?$", re.MULTILINE)


def file_of(inventory: Inventory) -> Path:
    """Where the inventory is, or would be."""
    return inventory.path or config_directory() / "inventory.toml"


def with_host(inventory: Inventory, name: str, url: str, address: str, state: str) -> str:
    """The text of the inventory with a host more, checked whole. Raises Conflict: there is one; UsageError."""
    path = file_of(inventory)
    if name in inventory.hosts:
        raise Conflict(f"there is a host {name} already: {inventory.hosts[name].url}", "storkit host list")
    text = path.read_text() if path.exists() else ""
    tables = [_table("local", "local")] if "local" in inventory.hosts and not _spans(text, "hosts.") else []
    tables.append(_table(name, url, address=address, state=state))
    new = "\n".join([*([text.rstrip("\n") + "\n"] if text else []), *tables])
    parse(new, path)
    return new


def without_host(inventory: Inventory, name: str) -> str:
    """The text of the inventory with a host less, checked whole. Raises UsageError: it has to be edited."""
    path = file_of(inventory)
    text = path.read_text() if path.exists() else ""
    by_hand = UsageError(
        f"host {name} has no table of its own in {path}", "take it out there, and see: storkit host list"
    )
    for start, end in reversed(_spans(text, f"hosts.{name}", whole=True)):
        text = text[:start] + text[end:]
    if not text:
        raise by_hand
    before = parse(path.read_text(), path)
    rest = {host: config for host, config in before.hosts.items() if host != name}
    if asdict(parse(text, path)) != asdict(replace(before, hosts=rest)):  # a pool is equal to no other one
        raise by_hand
    return text


def write(inventory: Inventory, text: str) -> Path:
    """Keep a new text, durably; the file."""
    path = file_of(inventory)
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    write_atomic(path, text, mode)
    return path


def _table(name: str, url: str, **more: str) -> str:
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
    values = {"url": url, **{word: value for word, value in more.items() if value}}
    return "\n".join([f"[hosts.{key}]", *(f"{word} = {json.dumps(value)}" for word, value in values.items()), ""])


def _spans(text: str, name: str, whole: bool = False) -> list[tuple[int, int]]:
    """Where tables that begin with a name lie, each to its last key. `whole`: that table, and those below it."""
    headers = [(match.start(), match[1].replace('"', "").replace(" ", "")) for match in _HEADER.finditer(text)]
    ends = [start for start, _ in headers[1:]] + [len(text)]
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
