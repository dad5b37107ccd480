"""What a pool keeps of guests beside their volumes: DIRECTORY/UUID/GENERATION.json, by the UUID of the guest's first
volume, 0600. A generation is written once, whole and durable, under a lock, and never changed; the last ten stay.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from storkit.core import codec
from storkit.core.backend import Pool
from storkit.core.errors import Conflict, StorkitError, Unsafe, UsageError, collected, raise_problems
from storkit.core.guest import KeptGuest, KeptHere, digest_of
from storkit.core.identities import check_uuid
from storkit.core.model import Finding
from storkit.system import files, locks
from storkit.system.timeouts import scaled

GENERATIONS = 10
LARGEST = 1 << 20
"""Bytes of a guest's texts."""


class KeepsGuests(Pool):
    """A pool that keeps guests in a directory."""

    @abstractmethod
    def _guests(self) -> Path | None:
        """The directory that they are kept in, made when it is needed; None: the pool is not there yet."""

    @abstractmethod
    def _must_have(self, guests: list[KeptGuest]) -> None:
        """Raise NotFound or Conflict unless the pool has the volumes that these guests are to be kept with."""

    def kept(self, volumes: list[str] | None = None) -> KeptHere:
        found = KeptHere([])
        for uuid in self._kept(volumes):
            try:
                newest = self._newest(uuid)
            except StorkitError as error:
                found.damaged.extend(Finding(each.message, each.hint) for each in error.each)
                continue
            if newest:
                found.guests.append(replace(newest, record="", document=""))
        return found

    def texts(self, volumes: list[str], generation: int = 0) -> list[KeptGuest]:
        found = (_read(self._place(), uuid, generation) if generation else self._newest(uuid)
                 for uuid in self._kept(volumes))  # fmt: skip
        return [each for each in found if each]

    def keep(self, guests: list[KeptGuest], carried: bool = False) -> None:
        texts = {}
        problems: list[StorkitError] = []
        for guest in guests:
            with collected(problems):
                texts[guest.uuid] = _text(guest)
        raise_problems(problems)
        self._must_have(guests)
        with self._writing() as directory:
            new = [guest for guest in guests if self._is_new(guest, carried, problems)]
            raise_problems(problems)
            try:
                for guest in new:
                    place = files.make_private(directory / guest.uuid)
                    files.write_atomic(place / f"{guest.generation}.json", texts[guest.uuid])
                files.sync_directory(directory)
            except BaseException:
                _remove(directory, new)
                raise
            for guest in new:
                for old in generations(directory / guest.uuid):
                    if old <= guest.generation - GENERATIONS:
                        (directory / guest.uuid / f"{old}.json").unlink(missing_ok=True)

    def unkeep(self, guests: list[KeptGuest]) -> None:
        with self._writing() as directory:
            problems: list[StorkitError] = []
            mine: list[KeptGuest] = []
            for guest in guests:
                newest = self._newest(guest.uuid)
                if newest is None or newest.generation < guest.generation:
                    continue
                mine.append(guest)
                if (newest.generation, newest.digest) != (guest.generation, _digest(guest)):
                    problems.append(_changed(newest, guest))
            raise_problems(problems)
            _remove(directory, mine)

    def _forget(self, uuids: Iterable[str]) -> None:
        """Remove what is kept with volumes that are gone."""
        place = self._guests()
        for uuid in uuids if place is not None and place.is_dir() else ():
            if os.path.lexists(there := self._place() / check_uuid(uuid)):
                import shutil  # it brings three compressors along

                shutil.rmtree(there)

    def _may_keep(self) -> None:
        """Raise Unsafe if this host may change nothing in the pool."""

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        self._may_keep()
        place = files.make_private(self._place())
        holder = f"keep guests of pool {self.pool} (pid {os.getpid()})"
        lock = locks.acquire(place / ".lock", f"what pool {self.pool} keeps", holder=holder, wait=scaled(30.0))
        try:
            yield place
        finally:
            lock.release()

    def _place(self) -> Path:
        place = self._guests()
        if place is None:
            raise Conflict(f"pool {self.pool} has no volume yet", "storkit volume list")
        return place

    def _kept(self, volumes: Sequence[str] | None) -> list[str]:
        """Those of these UUIDs (None: all) with which something is kept."""
        place = self._guests()
        if place is None or not place.is_dir():
            return []
        if volumes is None:
            return sorted(entry.name for entry in os.scandir(place) if _is_uuid(entry.name))
        return [uuid for uuid in dict.fromkeys(volumes) if (place / check_uuid(uuid)).is_dir()]

    def _newest(self, uuid: str) -> KeptGuest | None:
        there = generations(self._place() / check_uuid(uuid))
        return _read(self._place(), uuid, there[-1]) if there else None

    def _is_new(self, guest: KeptGuest, carried: bool, problems: list[StorkitError]) -> bool:
        """Whether a generation is still to be written; what speaks against it is added to `problems`."""
        with collected(problems):
            for place in (self._place(), self._place() / check_uuid(guest.uuid)):
                files.look_anew(place)  # another manager of the pool may have kept one
            newest = self._newest(guest.uuid)
            if newest is None and (carried or guest.generation == 1):
                return True
            if newest is None:
                message = f"nothing is kept of guest {guest.name}, and this would be its generation {guest.generation}"
                raise Conflict(message, f"storkit guest diff {guest.name}")
            if newest.guest != guest.guest and not newest.gone:
                message = f"volume {guest.volume} is the first disk of guest {newest.name}, which is kept with it"
                raise Conflict(message, f"storkit guest show {newest.name}; or storkit guest delete {newest.name}")
            if newest.generation == guest.generation - 1:
                return True
            if (newest.generation, newest.digest, newest.gone) != (guest.generation, _digest(guest), guest.gone):
                raise _changed(newest, guest)
        return False


def generations(place: Path) -> list[int]:
    """The generations that are in the directory of a volume, the newest last."""
    if not place.is_dir():
        return []
    stems = (entry.name.removesuffix(".json") for entry in os.scandir(place) if entry.name.endswith(".json"))
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and len(stem) < 19)


def _is_uuid(name: str) -> bool:
    with suppress(UsageError):
        return bool(check_uuid(name))
    return False


def _read(place: Path, uuid: str, generation: int) -> KeptGuest | None:
    """A generation; None: there is none. Raises Unsafe: it is damaged."""
    path = place / uuid / f"{generation}.json"
    hint = f"mv {path} elsewhere: the generation before it counts then"
    try:
        kept = codec.load(KeptGuest, files.read_json(path, "the guest"), strict=False)
    except FileNotFoundError:
        return None
    except Unsafe as error:
        raise Unsafe(error.message, hint) from None
    except StorkitError as error:
        raise Unsafe(f"the guest {path} is damaged: {error.each[0].message}", hint) from None
    if (kept.uuid, kept.generation, kept.digest) != (uuid, generation, _digest(kept)):
        raise Unsafe(f"the guest {path} is damaged: it is not what was written there", hint)
    return kept


def _remove(directory: Path, guests: Iterable[KeptGuest]) -> None:
    """Remove the generations of these guests, durably."""
    for guest in guests:
        if (place := directory / guest.uuid).is_dir():
            (place / f"{guest.generation}.json").unlink(missing_ok=True)
            files.sync_directory(place)


def _text(guest: KeptGuest) -> str:
    """The content of a generation's file. Raises UsageError: it is none, or too large."""
    if bool(guest.record) == guest.gone:
        raise UsageError(f"guest {guest.name}: what is kept of a guest is its record", "storkit guest commit")
    size = sum(len(text.encode(errors="surrogatepass")) for text in (guest.record, guest.document))
    text = json.dumps(codec.dump(replace(guest, digest=_digest(guest)))) + "\n"
    if size > LARGEST or len(text) > files.LIMIT:
        raise UsageError(f"guest {guest.name} is too large to be kept: {size} bytes, {LARGEST} at most", "shorten it")
    return text


def _digest(guest: KeptGuest) -> str:
    return digest_of(guest.record, guest.document)


def _changed(newest: KeptGuest, guest: KeptGuest) -> Conflict:
    what = "deleted" if newest.gone else "changed"
    message = f"guest {newest.name} was {what} by {newest.by or 'somebody'} ({newest.since}, generation"
    return Conflict(
        f"{message} {newest.generation}), and this would be generation {guest.generation}",
        f"storkit guest diff {guest.name}; then storkit guest checkout {guest.name}, and change that",
    )
