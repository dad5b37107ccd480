"""What this machine accepts of coordinators: looked at, and written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from storkit.core import codec, registry
from storkit.core.backend import Backend, own_settings
from storkit.core.errors import NotFound, StorkitError, Unsupported, UsageError, collected, raise_problems
from storkit.core.host import state_directory
from storkit.core.identities import several
from storkit.hosts.accept import KINDS, Accepted, check_names, default_file, difference, dumps, load, save
from storkit.hosts.setup import Setup, remembered, setup
from storkit.plans.intent.coordinator import Coordinator
from storkit.system import beneath


@dataclass(frozen=True, slots=True)
class AcceptWish:
    """What this machine is to accept from now on, beside what it accepts, or not to accept any more."""

    targets: Sequence[str] = ()
    """`pool:NAME`, `transport:NAME`, `hypervisor:NAME`, as the machine was told of them."""
    import_directories: Sequence[str] = ()
    export_directories: Sequence[str] = ()
    templates: str = ""
    state: str = ""
    remove: Sequence[str] = ()
    """Targets and directories."""
    from_inventory: str = ""
    """The host of this coordinator's inventory that the machine is: what it would be told."""
    file: Path | None = None
    """The file that says what is accepted; None: the machine's own."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What this machine accepts."""

    file: Path
    exists: bool
    changed: bool
    """Whether what was wished for makes a difference."""
    written: bool
    accepted: Accepted
    asked: list[tuple[str, str]]
    """What it was asked for and does not accept: target, and in what they differ."""

    @property
    def text(self) -> str:
        """The file's text (TOML)."""
        return dumps(self.accepted)


def accept(coordinator: Coordinator, wish: AcceptWish) -> Acceptance:
    """What is accepted; with anything wished for it is written first, unless this coordinator only plans."""
    for names in (wish.targets, wish.import_directories, wish.export_directories, wish.remove):
        several(names)
    file = (wish.file or default_file()).absolute()
    before = load(file)
    told = _told(coordinator, wish, before or Accepted())
    after = _changed(before or Accepted(), told, wish)
    changed = after != (before or Accepted()) or (before is None and any(astuple(replace(wish, file=None))))
    written = changed and not coordinator.planning
    if written:
        save(file, after)
    return Acceptance(file, before is not None or written, changed, written, after, _asked(after, told))


def _told(coordinator: Coordinator, wish: AcceptWish, accepted: Accepted) -> Setup | None:
    """What this host was told: by the inventory that is named, or else by whoever last did."""
    if wish.from_inventory:
        return setup(coordinator.inventory, coordinator.inventory.host(wish.from_inventory))
    state = Path(wish.state or accepted.state or state_directory()).absolute()
    told = remembered(state)
    if told is not None:
        check_names(told)
    return told


def _changed(accepted: Accepted, told: Setup | None, wish: AcceptWish) -> Accepted:
    """What is accepted from now on. Everything that is wrong with what was said is raised at once."""
    problems: list[StorkitError] = []
    tables: dict[str, dict[str, dict[str, Any]]] = {kind: dict(getattr(accepted, KINDS[kind])) for kind in KINDS}
    directories = {use: list(getattr(accepted, use)) for use in ("import_", "export")}
    wanted = wish.targets or (_all(told) if wish.from_inventory and told else [])
    for target in wanted:
        with collected(problems):
            kind, _, name = target.partition(":")
            tables[kind][name] = _definition(target, told)
    for use, given in (("import_", wish.import_directories), ("export", wish.export_directories)):
        for each in given:
            with collected(problems):
                directory = _directory(each, closed=use == "export")
                directories[use] += [directory] if directory not in directories[use] else []
    templates = accepted.templates
    if wish.templates:
        with collected(problems):
            templates = _directory(wish.templates, closed=True)
    for what in wish.remove:
        kind, _, name = what.partition(":")
        place = str(Path(what).resolve())
        places = [places for places in directories.values() if place in places]
        if kind in tables and name in tables[kind]:
            del tables[kind][name]
        elif places:
            for accepted_places in places:
                accepted_places.remove(place)
        elif place == templates:
            templates = ""
        else:
            problems.append(NotFound(f"{what} is not accepted, so it cannot be removed", "storkit host accept"))
    raise_problems(problems)
    state = wish.state or (told.state if told and wish.from_inventory else "") or accepted.state
    return Accepted(
        state=str(Path(state).absolute()) if state else "",
        templates=templates,
        import_=directories["import_"],
        export=directories["export"],
        pools=tables["pool"],
        transports=tables["transport"],
        hypervisors=tables["hypervisor"],
    )


def _all(told: Setup) -> list[str]:
    """The targets of all that a host was told that needs to be accepted."""
    found = [f"pool:{name}" for name in told.pools]
    for kind, tables in (("transport", told.transports), ("hypervisor", told.hypervisors)):
        for name, settings in tables.items():
            with suppress(Unsupported):  # what is not installed here is not used
                found += [f"{kind}:{name}"] if _own(_class(kind, name), settings) else []
    return found


def _class(kind: str, name: str) -> type[Backend]:
    found: type[Backend] = getattr(registry, kind)(name)
    return found


def _own(cls: type[Backend], settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in own_settings(cls.Settings)}


def _definition(target: str, told: Setup | None) -> dict[str, Any]:
    """How a host was told a pool, or the paths and programs of a transport or hypervisor."""
    kind, _, name = target.partition(":")
    if kind not in KINDS or not name:
        raise UsageError(f"{target!r} is no pool:NAME, transport:NAME or hypervisor:NAME", "storkit host accept")
    if told is None:
        hint = "run `storkit host check` where the inventory is; or bring it here: storkit host accept --from-inventory"
        raise NotFound(f"{target}: this host was never told anything", hint)
    if kind == "pool":
        if name not in told.pools:
            known = ", ".join(told.pools) or "none"
            raise NotFound(f"this host was told of no pool {name}", f"it was told of: {known}")
        pool = told.pools[name]
        codec.load(_class(kind, pool.type).Settings, pool.settings, target)
        return {"type": pool.type, **pool.settings}
    settings = (told.transports if kind == "transport" else told.hypervisors).get(name, {})
    codec.load(_class(kind, name).Settings, settings, target)
    return _own(_class(kind, name), settings)


def _directory(path: str, *, closed: bool) -> str:
    """An existing directory that no other user can put another one in the place of; `closed`: nor write."""
    directory = Path(path).resolve()
    with suppress(FileNotFoundError):
        os.close(beneath.open_trusted(directory) if closed else beneath.open_trusted(directory.parent, sticky=True))
    if not directory.is_dir():
        raise UsageError(f"there is no directory {directory}", f"mkdir -p {directory}")
    return str(directory)


def _asked(accepted: Accepted, told: Setup | None) -> list[tuple[str, str]]:
    """What this host was asked for and does not accept: target, and in what they differ."""
    found: list[tuple[str, str]] = []
    for target in _all(told) if told else []:
        try:
            wanted, own = _definition(target, told), accepted.table(target)
            kind, _, name = target.partition(":")
            cls = _class(kind, wanted.get("type", "") if kind == "pool" else name)
            settings = {key: value for key, value in wanted.items() if kind != "pool" or key != "type"}
            if why := difference(cls, target, settings, own):
                words = ", ".join(f"{key} = {value!r}" for key, value in wanted.items())
                found.append((target, words if own is None else f"{words},{why}"))
        except StorkitError as error:
            found += [(target, problem.message) for problem in error.each]
    return found
