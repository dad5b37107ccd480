"""Records of what storkit has done for volumes: one 0600 JSON file for each, on the disk before what it describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from storkit.core import codec
from storkit.core.errors import Conflict, StorkitError, Unsafe, UsageError
from storkit.core.identities import check_uuid
from storkit.core.model import Attachment, Finding, Offer
from storkit.system.files import PARTIAL, make_private, read_json, sync_directory, write_many

R = TypeVar("R")


class RecordFiles(Generic[R]):
    """The records of one kind, UUID.json in one directory. `kind` is their dataclass, `what` their name in messages;
    `check` raises UsageError for what their files cannot be named by."""

    def __init__(self, directory: Path, kind: type[R], what: str, check: Callable[[str], object] = check_uuid) -> None:
        self.directory = directory
        self._kind = kind
        self._what = what
        self._check = check

    def path(self, uuid: str) -> Path:
        """Where the record of a volume is. Raises UsageError: that is no UUID, and may lead elsewhere."""
        self._check(uuid)
        return self.directory / f"{uuid}.json"

    def uuids(self) -> list[str]:
        """The volumes that have a record, readable or not."""
        return sorted(path.stem for path in self.directory.glob("*.json") if self._ours(path.stem))

    def _ours(self, stem: str) -> bool:
        try:
            self._check(stem)
        except UsageError:
            return False
        return True

    def find(self, uuids: Iterable[str] | None = None) -> tuple[dict[str, R], list[StorkitError]]:
        """The records of these volumes (None: all) by UUID, and what is wrong with those that are damaged."""
        found: dict[str, R] = {}
        problems: list[StorkitError] = []
        for uuid in self.uuids() if uuids is None else dict.fromkeys(uuids):
            path = self.path(uuid)
            try:
                found[uuid] = codec.load(self._kind, read_json(path, self._what), str(path))
            except FileNotFoundError:
                continue
            except StorkitError as error:
                hint = "move it away once you know what it held"
                problems.append(Unsafe(f"{self._what} {path} is damaged: {error.each[0].message}", hint))
        return found, problems

    def save(self, records: Mapping[str, R]) -> None:
        make_private(self.directory.parent)
        make_private(self.directory)
        write_many((self.path(uuid), codec.text(record)) for uuid, record in records.items())

    def forget(self, uuids: Iterable[str]) -> None:
        for path in map(self.path, uuids):
            for file in (path.with_name(path.name + PARTIAL), path):
                file.unlink(missing_ok=True)
        if self.directory.is_dir():
            sync_directory(self.directory)


def damaged_findings(problems: Iterable[StorkitError]) -> list[Finding]:
    """What is wrong with records, for those who only look."""
    return [Finding(each.message, each.hint) for problem in problems for each in problem.each]


class OfAttachment(Protocol):
    """What every kind of record of an attachment has."""

    @property
    def attachment(self) -> Attachment: ...


def refuse_renamed(known: OfAttachment | None, offer: Offer, host: str) -> None:
    """Raise Conflict if a volume that is attached is offered under another name: who says so may mean another disk, and
    the path of the one that is in use would be changed."""
    if known is not None and known.attachment.volume != offer.volume:
        name = known.attachment.volume
        raise Conflict(
            f"the volume with UUID {offer.uuid} is attached on {host} as {name}, and is offered as {offer.volume}",
            f"storkit detach {name} --on {host}",
        )
