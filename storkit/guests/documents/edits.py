"""What is changed in a guest's own document: spans of its text, each put in the place of another, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from storkit.core.errors import Unsupported, UsageError
from storkit.core.model import DiskSource


class Edit(NamedTuple):
    """New text for what stands from `start` to before `end`, counted in characters."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class DocumentDisk:
    """What a document has opened: a file, a device, a server's export."""

    target: str
    """What the guest, or the document, calls it: vda, xvda2, hdc."""
    line: int
    """The line of the document, counted from 1."""
    place: str
    """Where its bytes are, as the document says; empty: nothing is in the drive."""
    source: DiskSource | None = None
    """The same, where storkit knows such a place."""
    readonly: bool = False
    kind: str = "disk"
    """`disk`; `nvram`, UEFI variables; `cdrom`, `floppy`: may be kept as they are, as may any other thing of that name,
    which is no disk."""

    @property
    def mapped(self) -> bool:
        """Whether a volume can take its place."""
        return self.kind in ("disk", "nvram")


@dataclass(frozen=True, slots=True)
class Password:
    """A secret that stands in a document, or the name of one that is kept elsewhere."""

    line: int
    value: str = field(repr=False)
    edits: Callable[[str], list[Edit]] | None = None
    """The changes that put another text in its place; None: it would be an argument of a process, for all to see."""


@dataclass(frozen=True, slots=True)
class CloneIdentity:
    """What makes a clone another guest."""

    name: str
    uuid: str
    mac: Callable[[int], str]
    """The address of the network card of a number, counted from 0."""
    serial: Callable[[int], str]
    """The serial number of a disk."""
    original: str = ""
    """The name of the guest that it is a clone of."""
    volumes: frozenset[str] = frozenset()
    """What of the document is a volume, by its target: the clone has a clone of it."""

    def path(self, path: str) -> str:
        """A file of its own, for one that the original writes."""
        directory, _, name = path.rpartition("/")
        own = name.replace(self.original, self.name) if self.original in name else f"{self.name}-{name}"
        return f"{directory}/{own}"


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with these changes, of which no two overlap."""
    made: list[str] = []
    position = 0
    for edit in sorted(edits):
        assert edit.start >= position, f"two changes of one span: {edit}"
        made += [text[position : edit.start], edit.text]
        position = edit.end
    return "".join([*made, text[position:]])


def numbered(disks: Iterable[DocumentDisk]) -> Iterator[DocumentDisk]:
    """Two words that say the same open the same twice: each has a name."""
    seen: dict[str, int] = {}
    for disk in disks:
        seen[disk.target] = seen.get(disk.target, 0) + 1
        yield disk if seen[disk.target] == 1 else replace(disk, target=f"{disk.target} ({seen[disk.target]})")


def line_of(text: str, position: int) -> int:
    """The number of the line that a place is in, counted from 1."""
    return text.count("\n", 0, position) + 1


def missing(targets: Iterable[str]) -> UsageError:
    """An error for disks that a document does not have."""
    return UsageError(
        f"the guest's document has no disk {', '.join(sorted(targets))}", "storkit guest show; guest import"
    )


def not_twice(line: int, what: str) -> Unsupported:
    """An error for what two guests cannot have both, and storkit cannot choose anew."""
    return Unsupported(
        f"line {line}: {what}: two guests cannot have it both", "take it out of the document, then clone"
    )
