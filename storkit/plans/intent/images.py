"""Volumes from disk images and trees, and volumes as image files: as files of their hosts, and through pipes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from storkit.core.errors import Conflict, StorkitError, UsageError, collected, raise_problems
from storkit.core.model import Volume, check_name
from storkit.core.units import format_size
from storkit.plans import planner
from storkit.plans.intent.coordinator import Coordinator, Ran
from storkit.plans.intent.making import Bytes, in_bytes, must_be_free, new_volume, pool_of
from storkit.plans.plan import Plan
from storkit.plans.planner import locks_of
from storkit.tech.files.content import streams
from storkit.tech.images import download, exporting, headers


@dataclass(frozen=True, slots=True)
class Import:
    """What a volume is to be that is made of an image (VolumeActs.import_image)."""

    name: str
    pool: str
    golden: bool
    format: str
    size: Bytes | None
    max_size: Bytes | None
    checksum: str


def import_image(coordinator: Coordinator, source: str | Path | BinaryIO, how: Import) -> Ran:
    """Make a volume of an image: a file on the pool's host, or a stream, which is kept below the state meanwhile."""
    problems: list[StorkitError] = []
    wanted = limit = 0
    with collected(problems):
        wanted = 0 if how.size is None else in_bytes(how.size)
    with collected(problems):
        limit = 0 if how.max_size is None else in_bytes(how.max_size)
    with collected(problems):
        pool = pool_of(coordinator, how.pool)
    with collected(problems):
        check_name("volume", how.name)
    raise_problems(problems)
    must_be_free(coordinator, [how.name], pool)
    host = coordinator.connections.to(pool.host)
    local = host.config.machine == "local"
    comes = download.is_url(source) or not isinstance(source, str | Path)
    if comes and not local:
        what = source if isinstance(source, str) else "standard input"
        raise UsageError(f"{what} cannot be imported on {pool.host}", "copy the file there and name it")
    with _file(coordinator, source, limit, local, how.checksum) as file:
        call = {"source": file, "format": how.format, "checksum": how.checksum, "max_size": limit}
        info = host.images.inspect(file, how.format, how.checksum, limit)
        if info.padding:
            shown = source if isinstance(source, str | Path) else "-"
            coordinator.warn(f"{shown}: {info.padding} bytes of zeros make whole sectors of it")
        if wanted and wanted < info.virtual_size:
            raise UsageError(
                f"the image is {format_size(info.virtual_size)} large, more than {format_size(wanted)}",
                "leave --size out, or make it larger",
            )
        volume = new_volume(pool, how.name, max(wanted, info.virtual_size))
        kind = "image" if how.golden else "disk"
        return coordinator.change(lambda: planner.import_image(volume, call, kind, coordinator.inventory))


@contextmanager
def _file(
    coordinator: Coordinator, source: str | Path | BinaryIO, limit: int, local: bool, checksum: str
) -> Iterator[str]:
    """The file that is to be imported, by the name that its host knows it by."""
    if isinstance(source, str) and download.is_url(source):
        with (
            closing(download.Download(source, checksum)) as stream,
            _spooled(coordinator, stream, limit, source) as file,
        ):
            yield file
    elif isinstance(source, str | Path):
        yield str(Path(source).absolute()) if local else str(source)
    else:
        with _spooled(coordinator, source, limit, "standard input") as file:
            yield file


@contextmanager
def _spooled(coordinator: Coordinator, stream: streams.Readable, limit: int, what: str) -> Iterator[str]:
    """A file of what a stream has; `what` it is for those who are told that it is wrong."""
    spooled = streams.spool(stream, coordinator.state, limit or headers.MAX_SIZE)
    try:
        yield str(spooled)
    except StorkitError as error:
        for problem in error.each:  # what is wrong with the file is wrong with what was read
            problem.message = problem.message.replace(str(spooled), what)
            problem.args = (problem.message,)
        raise
    finally:
        spooled.unlink(missing_ok=True)


def import_tree(coordinator: Coordinator, source: str, name: str, pool: str) -> Ran:
    """Make a tree of a tar file or a directory on the pool's host."""
    problems: list[StorkitError] = []
    with collected(problems):
        config = pool_of(coordinator, pool)
    with collected(problems):
        check_name("volume", name)
    raise_problems(problems)
    local = coordinator.inventory.host(config.host).machine == "local"
    place = str(Path(source).absolute()) if local else source

    def build() -> Plan:
        must_be_free(coordinator, [name], config)
        return planner.import_tree(new_volume(config, name, 0, kind="tree"), place, coordinator.inventory)

    return coordinator.change(build)


def export(coordinator: Coordinator, name: str, file: str, format: str, compress: bool) -> None:
    """Write a volume to an image file on its host."""

    def build() -> Plan:
        volume = coordinator.survey.volume(name)
        place = file
        if coordinator.inventory.host(volume.host).machine == "local":
            place = str(Path(file).absolute())
            exporting.refuse(volume, Path(place), format, compress)
        return planner.export_image(volume, place, format, compress, coordinator.inventory)

    coordinator.change(build)


def pour(coordinator: Coordinator, name: str, stream: BinaryIO, format: str, compress: bool) -> int:
    """Write a volume of this machine to a stream, once all of it is known to be there; the image's size in bytes.

    Nothing of it can be resumed, so it has no plan; the volume is locked meanwhile, as for an export to a file.
    """
    volume = _here(coordinator, name)
    if coordinator.planning:
        return 0
    coordinator.engine.hold(locks_of([volume]), title=f"write {volume.name} to standard output")
    try:
        if _here(coordinator, name) != volume:
            raise Conflict("another command changed the same volume meanwhile", "look at it, then try again")
        file = streams.place(coordinator.state)
        try:
            size = coordinator.connections.to(volume.host).images.export_image(volume, str(file), format, compress).size
            stream.flush()
            streams.pour(file, size, stream.fileno())
        finally:
            file.unlink(missing_ok=True)
    finally:
        coordinator.connections.unlock()
    return size


def _here(coordinator: Coordinator, name: str) -> Volume:
    volume = coordinator.survey.volume(name)
    if coordinator.inventory.host(volume.host).machine != "local":
        file = f"/var/tmp/{volume.name}.img"
        raise UsageError(
            f"volume {name} is on {volume.host}, and cannot be exported to standard output here",
            f"storkit volume export {name} {file}, and copy {file} from {volume.host}",
        )
    return volume
