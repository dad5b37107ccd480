"""Persistent reservations that LIO keeps through a restart (APTPL), in a file of its database for each logical unit.

The kernel writes the file at each PERSISTENT RESERVE OUT, and never reads it: whoever makes the backstore gives it back
through configfs. It is not written when an ACL is removed with its registrations, so the removed host's entries have to
be taken out here, or the next restart would bring them back.

Kernel: core_scsi3_update_aptpl_buf() and target_pr_res_aptpl_metadata_store() in drivers/target.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from storkit.system.files import write_atomic

_ENTRY = re.compile(r"PR_REG_START:[^\n]*\n(?P<body>.*?)PR_REG_END:[^\n]*\n?", re.DOTALL)
_REGISTERED = re.compile(r"^\S+ Node: (?P<node>[^,\s]+)\S* Key: 0x(?P<key>[0-9a-fA-F]+)", re.MULTILINE)


def parse_registered(text: str) -> dict[str, str]:
    """Initiator name to its key, in 16 hexadecimal digits, of the file pr/res_pr_registered_i_pts."""
    return {match["node"]: match["key"].lower().rjust(16, "0") for match in _REGISTERED.finditer(text)}


def parse_entries(text: str) -> list[tuple[str, str]]:
    """Initiator name and metadata, as pr/res_aptpl_metadata takes it, of each registration in an APTPL file."""
    entries = []
    for match in _ENTRY.finditer(text):
        lines = [line.strip() for line in match["body"].splitlines() if line.strip()]
        node = next((line.removeprefix("initiator_node=") for line in lines if line.startswith("initiator_node=")), "")
        entries.append((node, ",".join(lines)))
    return entries


def without(text: str, initiators: Iterable[str]) -> str:
    """An APTPL file's text without the registrations of these initiators."""
    gone = set(initiators)
    return _ENTRY.sub(lambda match: "" if parse_entries(match[0])[0][0] in gone else match[0], text)


def file(database: Path, serial: str) -> Path:
    return database / "pr" / f"aptpl_{serial}"


def kept(databases: Iterable[Path], serial: str, initiators: Iterable[str]) -> list[str]:
    """The metadata of what these initiators, and no others, had registered at a logical unit before a restart.

    The kernel's database moves when the distribution's tools are installed: what was written last counts.
    """
    known = set(initiators)
    files = [path for path in (file(database, serial) for database in databases) if path.exists()]
    if not files:
        return []
    latest = max(files, key=lambda path: path.stat().st_mtime_ns)
    return [metadata for node, metadata in parse_entries(_text(latest)) if node in known]


def forget(databases: Iterable[Path], serial: str, initiators: Iterable[str] | None = None) -> None:
    """Forget what these initiators (None: all, and the file) had registered."""
    for path in (file(database, serial) for database in databases):
        if initiators is None:
            path.unlink(missing_ok=True)
            continue
        before = _text(path)
        after = without(before, initiators)
        if after != before:
            write_atomic(path, after)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
