"""What proves that hosts see one disk: identity, size and reservation keys, then bytes that nobody is writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storkit.core.errors import Unsafe
from storkit.core.identities import Count, HostName, Line, Size, Uuid, VolumeName
from storkit.core.model import Evidence


def same_disk(volume: str, seen: Sequence[Evidence]) -> None:
    """Raise Unsafe unless all evidence states one identity and one size, and each host reads the reservation keys that
    the others have registered."""
    first = seen[0]
    for reader in seen:
        for other in seen:
            if other.key and reader.keys is not None and other.key not in reader.keys:
                raise Unsafe(
                    f"volume {volume}: {other.host} has registered key {other.key}, which {reader.host} does not see: "
                    "two different disks",
                    f"storkit detach {volume} --on {reader.host}, then attach it again",
                )
    for other in seen[1:]:
        for what, one, two in (("identity", first.identity, other.identity), ("size", first.size, other.size)):
            if one != two:
                raise Unsafe(
                    f"volume {volume}: {first.host} sees {what} {one}, {other.host} sees {two}: two different disks",
                    f"storkit detach {volume} --on {other.host}, then attach it again",
                )


@dataclass(frozen=True, slots=True)
class Proof:
    """What was compared of one volume."""

    volume: VolumeName
    uuid: Uuid
    hosts: list[HostName]
    identity: Line
    size: Size
    blocks: Count
    """How many blocks were alike."""


class Comparison:
    """The blocks of one volume as its hosts read them, again and again while some differ.

    A guest that writes may change a block between two hosts' readings. Such a block is alike in a later round, or it is
    seen to change, and says nothing then; a block that differs and stays as it is on every host is of another disk.
    """

    def __init__(self) -> None:
        self._alike: set[str] = set()
        self._written: set[str] = set()
        self._last: dict[str, list[str | None]] = {}

    def add(self, seen: Sequence[Evidence]) -> list[int]:
        """Take in what every host has read in one round; the offsets that are to be read again."""
        for at in seen[0].blocks:
            digests = [host.blocks.get(at) for host in seen]
            if len(set(digests)) == 1:
                self._alike.add(at)
            elif self._last.get(at, digests) != digests:
                self._written.add(at)
            self._last[at] = digests
        return [int(at) for at in self._last if at not in self._alike]

    def conclude(self, volume: str, hosts: Sequence[str]) -> int:
        """How many blocks were alike. Raises Unsafe: some were not, or none was."""
        differing = self._last.keys() - self._alike - self._written
        if differing or (self._last and not self._alike):
            raise Unsafe(
                f"{' and '.join(hosts)} read different bytes of volume {volume} "
                f"at {len(self._last) - len(self._alike)} of {len(self._last)} places",
                f"they do not see one disk: storkit verify {volume}",
            )
        return len(self._alike)
