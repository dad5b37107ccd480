"""The files of a guest, and what its pool keeps: compared, kept, fetched, edited."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from storkit.core.errors import Conflict, NotFound, raise_problems
from storkit.core.guest import Guest, KeptGuest, digest_of
from storkit.core.inventory import PoolConfig
from storkit.guests import document, files
from storkit.guests.check import check
from storkit.guests.files import Texts
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.disks import refuse_to_share
from storkit.plans.intent.kept import keeping, sources

_MOST_LINES = 20_000
"""Of a diff: the time that it takes grows faster than they do."""


@dataclass(frozen=True, slots=True)
class GuestKept:
    """What is kept of a guest, and what its files here are made from."""

    kept: KeptGuest | None
    """The newest generation, without its texts; None: nothing is kept."""
    pool: str = ""
    generation: int | None = None
    """The one that the files here say that they were made from, 0 if they say none; None: there are no files here."""
    same: bool = False
    """Whether the files say what is kept."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two texts of a guest differ, as a unified diff; empty: nowhere."""

    what: str
    text: str


def state(coordinator: Coordinator, name: str) -> GuestKept:
    """What is kept of a guest, compared with its files."""
    said = _said(coordinator, name)
    found = _kept(coordinator, name)
    generation = said.generation if said else None
    if found is None:
        return GuestKept(None, generation=generation)
    pool, kept = found
    same = said is not None and digest_of(said.record, said.document) == kept.digest and not kept.gone
    return GuestKept(kept, pool.name, generation, same)


def commit(coordinator: Coordinator, name: str) -> int:
    """Keep what the files of a guest say; the generation. 0: nothing keeps it. Raises Conflict: what is kept was
    changed since the files were made from it."""
    guest = files.load(coordinator.guests, name)
    refuse_to_share(coordinator, guest)
    (generation,) = keeping.keep(coordinator, [(guest, files.texts(coordinator.guests, name))])
    if generation:
        files.mark(coordinator.guests, name, generation)
    return generation


def checkout(coordinator: Coordinator, name: str, force: bool, generation: int = 0) -> Path:
    """Write the files of a guest from what is kept; the record's. `generation`: the texts of an earlier one, to be kept
    again by `commit`.

    Raises NotFound: nothing is kept of it. Conflict: its files say what is not kept, and would be lost; `force`: let
    them.
    """
    found = _kept(coordinator, name)
    if found is None or found[1].gone:
        files.path(coordinator.guests, name)
        raise NotFound(f"no pool keeps a guest {name}", "storkit guest list")
    pool, newest = found
    kept = sources.whole(coordinator, pool, newest, generation)
    guest = sources.parse(coordinator, pool, kept)
    if not force:
        _refuse_to_lose(coordinator, name, pool, newest, kept)
    if coordinator.planning:
        return files.path(coordinator.guests, name)
    said = Texts(kept.record, kept.document, newest.generation)
    return files.write(coordinator.guests, name, said, guest.hypervisor)


def differences(coordinator: Coordinator, name: str) -> list[Difference]:
    """Where the files of a guest say something else than what is kept."""
    found = _kept(coordinator, name)
    said = _said(coordinator, name)
    if found is None:
        raise NotFound(
            f"no pool keeps a guest {name}", f"storkit guest commit {name}" if said else "storkit guest list"
        )
    pool, newest = found
    old = newest if newest.gone else sources.whole(coordinator, pool, newest)
    said = said or Texts(old.record, old.document, old.generation)
    suffix = document.SUFFIXES.get(newest.hypervisor, "")
    pairs = [(name + files.SUFFIX, old.record, said.record), (name + suffix, old.document, said.document)]
    return [Difference(what, text) for what, before, after in pairs if (text := _diff(what, old, before, after))]


def edit(coordinator: Coordinator, name: str, edited: Callable[[dict[str, str]], dict[str, str]]) -> int:
    """Have a guest's texts edited (`edited`: names of files to texts, and back), keep them, and write them to its files
    if it has any here; the generation, 0 if nothing was changed.

    Raises what is wrong with them, as an import does, before anything changes.
    """
    sources.load(coordinator, name)
    said = _said(coordinator, name)
    here = said is not None
    if said is None:
        found = sources.find(coordinator, name)
        assert found is not None
        kept = sources.whole(coordinator, *found)
        said = Texts(kept.record, kept.document, kept.generation)
    guest = files.parse(said.record, name, name, own=said.document)
    second = name + document.SUFFIXES.get(guest.hypervisor, "")
    before = {name + files.SUFFIX: said.record} | ({second: said.document} if said.document else {})
    after = edited(before)
    if after == before:
        return 0
    new = Texts(after[name + files.SUFFIX], after.get(second, ""), said.generation)
    changed = _checked(coordinator, name, new, guest)
    (generation,) = keeping.keep(coordinator, [(changed, new)])
    if here or not generation:
        files.write(coordinator.guests, name, replace(new, generation=generation), changed.hypervisor)
    return generation


def _checked(coordinator: Coordinator, name: str, new: Texts, old: Guest) -> Guest:
    """The guest that edited texts describe."""
    guest = files.parse(new.record, name + files.SUFFIX, name, own=new.document)
    problems = [*check(guest, name + files.SUFFIX)]
    if guest.uuid != old.uuid:
        problems.append(Conflict(f"guest {name} would get another UUID, and be another guest", f"uuid = {old.uuid!r}"))
    raise_problems(problems)
    refuse_to_share(coordinator, guest)
    return guest


def _said(coordinator: Coordinator, name: str) -> Texts | None:
    """What the files of a guest say; None: it has none here."""
    if not files.path(coordinator.guests, name).exists():
        return None
    return files.texts(coordinator.guests, name)


def _kept(coordinator: Coordinator, name: str) -> tuple[PoolConfig, KeptGuest] | None:
    """What is kept of a guest: with its first volume, by its files; or wherever it is."""
    if files.path(coordinator.guests, name).exists():
        guest = files.load(coordinator.guests, name)
        first = sources.home(guest)
        if first is None:
            return None
        volume = coordinator.survey.find_all([first.volume], {first.volume: first.uuid} if first.uuid else {})[0]
        kept = sources.with_volume(coordinator, volume)
        return (coordinator.inventory.pool(volume.pool), kept) if kept else None
    return sources.find(coordinator, name)


def _refuse_to_lose(
    coordinator: Coordinator, name: str, pool: PoolConfig, newest: KeptGuest, wanted: KeptGuest
) -> None:
    """Raise Conflict if the files of a guest say what none of its generations does that they could be made from."""
    if (said := _said(coordinator, name)) is None:
        return
    mine = digest_of(said.record, said.document)
    if mine in (newest.digest, wanted.digest):
        return
    made_from = coordinator.connections.to(pool.host).pool(f"pool:{pool.name}").texts([newest.uuid], said.generation)
    if said.generation and made_from and made_from[0].digest == mine:
        return
    message = f"the files of guest {name} say what is not kept, and would be written over"
    raise Conflict(message, f"storkit guest diff {name}; storkit guest commit {name}; or checkout --force")


def _diff(what: str, old: KeptGuest, before: str, after: str) -> str:
    """What the files of a guest have changed in what is kept."""
    return diff((f"kept/{what} (generation {old.generation})", before), (f"guests/{what}", after))


def diff(old: tuple[str, str], new: tuple[str, str]) -> str:
    """A unified diff of two texts, each with its name; a last line without its end is told as diff(1) does."""

    def lines(text: str) -> Iterator[str]:
        for line in text.splitlines(keepends=True):
            yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"

    (_, before), (_, after) = old, new
    if before == after:
        return ""
    named = old[0], new[0]
    if before.count("\n") + after.count("\n") > _MOST_LINES:
        return f"--- {named[0]}\n+++ {named[1]}\n(more than {_MOST_LINES} lines: compare them by hand)\n"
    return "".join(difflib.unified_diff(list(lines(before)), list(lines(after)), *named))
