"""Versions of golden images built: a clone of one is booted as a fleet of one, a script is run in it, and what it is
when it has shut down is the next version.

What a killed build has left is known by the record of that fleet, which has the UUID of the version that it was to
become. The same command goes on from it: a version that was sealed is the result; everything else is begun anew.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from storkit.core.errors import (
    CommandFailed,
    Conflict,
    Interrupted,
    StepFailed,
    StorkitError,
    TimedOut,
    Unsupported,
    UsageError,
    collected,
    raise_problems,
)
from storkit.core.identities import check_seconds
from storkit.core.model import Volume
from storkit.guests.fleets import identity, keys, record
from storkit.guests.fleets.record import Build, Fleet
from storkit.plans import planner
from storkit.plans.intent import definitions
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.fleets import entering
from storkit.plans.intent.fleets import members as present
from storkit.plans.intent.fleets.acts import FleetActs
from storkit.plans.intent.fleets.making import FleetWish
from storkit.plans.intent.golden import sealing, versions
from storkit.plans.intent.golden.versions import ImageVersion, Version
from storkit.plans.intent.making import Bytes, clone_format, made, must_be_free, new_volume, refuse_several
from storkit.plans.plan import Plan, Stages
from storkit.plans.verb import step
from storkit.plans.verbs.images import PutBackFiles
from storkit.plans.verbs.volumes import CloneVolume, FlattenVolumes
from storkit.system import locks
from storkit.system.files import make_private

_RUN = (
    'f=$(mktemp /root/storkit.XXXXXX) && cat >"$f" && chmod 700 "$f" || exit 255; '
    '"$f" 2>&1 </dev/null; s=$?; rm -f "$f"; exit $s'
)
"""A script that is read on standard input becomes a file, as its first line may name any program; it reads nothing.
Both its outputs are one, in their order."""

_CLOUD_INIT = (
    "python3 -c 'import sys, yaml; sys.exit(not isinstance(yaml.safe_load(sys.stdin), dict))' || exit 65; "
    "cloud-init status --wait >/dev/null 2>&1; s=$?; tail -n 12 /var/log/cloud-init-output.log; "
    "cloud-init status --long; exit $s"
)
"""Wait until cloud-init has done all that it is to do. A text that is no YAML it would leave out, and say that all is
well: it is looked at by what cloud-init itself reads it with."""
_LARGEST_CONFIG = 256 << 10
"""Bytes: the seed disk has 1 MiB, and Base64 makes four of three."""


@dataclass(frozen=True, slots=True)
class BuildWish:
    """How a version is to be built."""

    script: str = ""
    """Its text; run by /bin/sh, or by what its first line names. Empty: none is."""
    source: str = ""
    """The image, as NAME or NAME@3; empty: the newest version of the one that gets another."""
    host: str = ""
    """Where it is booted; empty: the image's home."""
    memory: Bytes = definitions.MEMORY
    vcpus: int = 1
    hypervisor: str = ""
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    settings: Sequence[str] = ()
    timeout: float = 1800.0
    """Seconds from its start to the end of the script."""
    keep: bool = False
    """Leave the clone as it is where the script, or cloud-init, fails."""
    cloud_config: str = ""
    """What cloud-init is to do, before the script: a text that begins with `#cloud-config`. Empty: nothing."""


@dataclass(frozen=True, slots=True)
class Built:
    """A version that was built, and what the script has said."""

    image: ImageVersion
    output: str
    """Empty as well if a command before this one, which was killed, has run it."""


def build(
    coordinator: Coordinator, directory: Path, image: str, wish: BuildWish, show: Callable[[str], list[ImageVersion]]
) -> Built:
    """Build the next version of an image (ImageActs.build). `directory`: of fleets' files."""
    _check(image, wish)
    source = versions.source(coordinator, wish.source or image)
    if not versions.is_version(source):
        message = f"volume {source.name} is a {source.kind}, and no golden image"
        raise Conflict(message, f"storkit image seal {source.name}")
    refuse_several(coordinator, source.pool, "images are not built")
    if wish.cloud_config and not coordinator.connections.to(source.host).images.look_inside(source).cloud_init:
        message = f"image {source.name} has no cloud-init in it, or none where it can be seen (a root on ext4)"
        raise Unsupported(message, "have it installed by --script: apt-get install -y cloud-init")
    fleets = FleetActs(coordinator)
    with _locked(coordinator, image):
        name = fleet_name(image)
        # As it was asked for: once the version is there, the newest one is another.
        text = "\0".join([wish.source, wish.script, *([wish.cloud_config] if wish.cloud_config else [])])
        recipe = hashlib.sha256(text.encode()).hexdigest()
        if name in record.names(directory) and (ready := _end(coordinator, fleets, name, image, recipe)):
            return Built(show(f"{ready.pool}/{Version(*versions.split(ready.name), ready).shown}")[0], "")
        number = sealing.next_number(coordinator, image, source.pool)
        version = versions.volume_name(image, number)
        must_be_free(coordinator, [version])
        begun = Build(version, str(uuid4()), recipe)
        _create(fleets, name, source, wish, begun)
        try:
            output = _run(fleets, name, wish)
            _seal(coordinator, fleets.load(name), begun, source)
        except Interrupted:  # its plan can be resumed, and this command given again
            raise
        except StorkitError as error:
            if wish.keep:
                error.hint = f"look at it: storkit fleet ssh {name}-01; then: storkit fleet destroy {name}"
            else:
                _clear(coordinator, fleets, name, image, error)
            raise
        fleets.destroy(name)
    return Built(show(f"{source.pool}/{image}@{number}")[0], output)


def fleet_name(image: str) -> str:
    """The fleet of one that an image is built by: it begins host names."""
    return f"{re.sub('[._]', '-', image)[:32].strip('-')}-build"


def _check(image: str, wish: BuildWish) -> None:
    problems: list[StorkitError] = []
    for test in (lambda: versions.volume_name(image, 1), lambda: check_seconds(wish.timeout)):
        with collected(problems):
            test()
    if not wish.script.strip() and not wish.cloud_config:
        problems.append(UsageError("the script is empty: the version would be the one that it is made from"))
    # cloud-init says nothing of a text that it does not know, and goes on.
    if wish.cloud_config and wish.cloud_config.split("\n", 1)[0].rstrip() != "#cloud-config":
        hint = "cloud-init knows it by that: https://cloudinit.readthedocs.io/en/latest/explanation/format.html"
        problems.append(UsageError("the first line of a cloud-config is `#cloud-config`, and that one's is not", hint))
    if len(wish.cloud_config.encode()) > _LARGEST_CONFIG:
        problems.append(UsageError(f"a cloud-config has {_LARGEST_CONFIG >> 10} KiB at most", "have it fetch the rest"))
    raise_problems(problems)


def _create(fleets: FleetActs, name: str, source: Volume, wish: BuildWish, begun: Build) -> None:
    image = f"{source.pool}/{Version(*versions.split(source.name), source).shown}"
    hosts = [wish.host] if wish.host else []
    view = fleets.create(
        name,
        FleetWish(
            image, 1, hosts, wish.memory, wish.vcpus, wish.hypervisor, wish.kernel, wish.initrd, wish.cmdline,
            settings=wish.settings, build=begun, cloud_config=wish.cloud_config,
        ),
    )  # fmt: skip
    if not view.fleet.base:
        fleets.destroy(name)
        message = f"nobody can get into a clone of {source.name}: {'; '.join(view.unset)}"
        raise Conflict(message, "build it by hand: storkit volume clone, start a guest, storkit image seal")


def _run(fleets: FleetActs, name: str, wish: BuildWish) -> str:
    """Boot the clone, run the script, and shut it down; what the script has said."""
    end = time.monotonic() + wish.timeout
    fleets.start(name)
    fleets.wait(name, timeout=wish.timeout)
    doors = fleets.doors(name)
    output = ""
    for what, program, text in (("cloud-init", _CLOUD_INIT, wish.cloud_config), ("the script", _RUN, wish.script)):
        if not text:
            continue
        (said,) = entering.run(doors, [program], max(1.0, end - time.monotonic()), text)
        if said.status == entering.LOST and time.monotonic() >= end:
            raise TimedOut(f"{what} has not ended within {wish.timeout:g} seconds", "give it more: --timeout SECONDS")
        if said.status:
            raise CommandFailed([what], said.status, said.stdout + said.stderr, host=said.member)
        output += said.stdout
    if wish.cloud_config:  # what it has done is no clone's own: each begins anew
        (said,) = entering.run(doors, ["cloud-init clean --logs"], max(60.0, end - time.monotonic()))
        if said.status:  # its passwords would be in the version
            raise CommandFailed(["cloud-init clean"], said.status, said.stdout + said.stderr, host=said.member)
    # A machine that is told so from inside shuts down whether or not it knows a power button.
    entering.run(doors, ["sync; poweroff"], max(60.0, end - time.monotonic()))
    fleets.stop(name, timeout=max(60.0, end - time.monotonic()))
    return output


def _seal(coordinator: Coordinator, fleet: Fleet, begun: Build, source: Volume) -> None:
    """Make what the member's disk is now the version: a copy that stands on nothing, without what made it a member."""
    member = fleet.members[0]
    pool = coordinator.inventory.pool(fleet.pool)
    paths = identity.put_back(fleet, keys.load(coordinator.state, fleet.uuid, []))

    def plan() -> Plan:
        disk = present.volumes(coordinator, fleet, [member])[member]
        planner.refuse_written(disk, coordinator.survey.exports([disk]), "sealed")
        wanted = new_volume(pool, begun.version, disk.size, format=clone_format(coordinator, pool))
        version = replace(wanted, uuid=begun.uuid, origin=disk.uuid)
        target = f"pool:{pool.name}"
        stages = Stages()
        stages.then(step(CloneVolume([version], disk), pool.host, target, f"clone {member} to {version.name}"))
        title = f"take out of {version.name} what made it {member}"
        stages.then(step(PutBackFiles(version, source, fleet.inside, paths), pool.host,
                         "images", title))  # fmt: skip
        stages.then(step(FlattenVolumes([version]), pool.host, target, f"flatten {version.name}"))
        sealing.add_seal(stages, version, source.uuid)
        holds = planner.locks_of([disk, source], shared=True)
        return planner.finish_plan(f"make {version.name} of {member}", stages, holds, coordinator.inventory)

    made(coordinator, coordinator.change(plan))


def _clear(coordinator: Coordinator, fleets: FleetActs, name: str, image: str, error: StorkitError) -> None:
    """Remove what has failed; whatever becomes of that, `error` is what is told."""
    try:
        _end(coordinator, fleets, name, image, "")
    except StorkitError as more:
        coordinator.warn(f"fleet {name} is still there: {more.message}")
        return
    if isinstance(error, StepFailed):  # there is nothing to resume
        error.hint = f"storkit image build {image}, once that is mended"


def _end(coordinator: Coordinator, fleets: FleetActs, name: str, image: str, recipe: str) -> Volume | None:
    """Remove what a build before this one has left. The version that it was to make, if it is made, and by the same
    recipe."""
    fleet = fleets.load(name)
    if fleet.build is None or versions.split(fleet.build.version)[0] != image:
        message = f"fleet {name} is there, and is not of a build of {image}"
        raise Conflict(message, f"storkit fleet show {name}")
    begun = fleet.build
    there = present.volumes(coordinator, fleet, [begun.version]).get(begun.version)
    ready = there if there and there.uuid == begun.uuid and there.kind == "image" and there.checksum else None
    if there and there.uuid == begun.uuid and not ready:

        def plan() -> Plan:
            now = present.volumes(coordinator, fleet, [begun.version]).values()
            half = [volume for volume in now if volume.uuid == begun.uuid]
            return planner.delete(half, coordinator.survey.exports(half), coordinator.inventory)

        coordinator.change(plan, over_marks=True)
    fleets.destroy(name)
    return ready if begun.recipe == recipe else None


@contextmanager
def _locked(coordinator: Coordinator, image: str) -> Iterator[None]:
    """One command at a time builds an image."""
    if coordinator.planning:
        yield
        return
    directory = make_private(coordinator.state / "images")
    lock = locks.acquire(directory / f"{image}.lock", f"image {image}", holder="another storkit image build")
    try:
        yield
    finally:
        lock.release(remove=True)
