"""What is kept of a User-Mode Linux guest on one host: its record, its disks there, and its kernel's arguments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from storkit.core import codec
from storkit.core.guest import Guest
from storkit.core.model import DiskSource
from storkit.hypervisors._embedded import RECORD
from storkit.hypervisors._uml import disks
from storkit.hypervisors._uml.kernel import UMID, Kernel
from storkit.system.files import make_private, read_json, write_atomic

START = "args"
LOG = "log"
"""What the guest's processes have said since its last start, and its console where the record names no file for it."""


@dataclass(frozen=True, slots=True)
class UmlDefinition:
    """A guest as it was defined on this host."""

    guest: Guest
    disks: list[DiskSource]


def load(directory: Path) -> UmlDefinition:
    """The definition kept in a directory. Raises FileNotFoundError; Unsafe or UsageError for a damaged one."""
    path = directory / RECORD
    return codec.load(UmlDefinition, read_json(path, "guest record"), str(path))


def save(directory: Path, definition: UmlDefinition, kernel: Kernel, templates: list[Path]) -> Path:
    """Render and keep a definition; the path of the kernel's arguments. The record comes last: without it there is
    none. Raises everything that is wrong with the guest before anything is written."""
    text = arguments(definition, kernel, templates)
    make_private(directory)
    write_atomic(directory / START, text)
    write_atomic(directory / RECORD, json.dumps(codec.dump(definition), indent=1) + "\n")
    return directory / START


def arguments(definition: UmlDefinition, kernel: Kernel, templates: list[Path]) -> str:
    """The program and its arguments, one a line."""
    from storkit.guests.place import Place
    from storkit.guests.render import render

    place = Place(uml_dir=str(kernel.directory), umid=UMID)
    shown = disks.shown(kernel.directory, definition.disks)
    return render(definition.guest, shown, "uml", place, templates)
