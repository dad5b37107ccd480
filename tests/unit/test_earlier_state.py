"""What earlier versions of storkit have written is read: tests/data/state-VERSION, made by that version itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storkit.core import codec, inventory
from storkit.core.backend import Site
from storkit.core.model import Offer
from storkit.guests import files
from storkit.hosts.guard import Guard
from storkit.hosts.setup import remembered
from storkit.hypervisors._qemu import definition as qemu_definition
from storkit.plans import verbs
from storkit.plans.journal import Journals
from storkit.plans.verb import seen
from storkit.tech.files.sidecar import VolumeDirectory
from storkit.tech.grants import GrantStore
from storkit.tech.iscsi import names as iscsi_names
from storkit.tech.nbd import attach as nbd_attach
from storkit.tech.nbd import names as nbd_names
from storkit.tech.nfs import attach as nfs_attach
from storkit.tech.nfs import names as nfs_names
from storkit.tech.records import RecordFiles

SAMPLES = sorted((Path(__file__).parents[1] / "data").glob("state-*"))
G, GOLD = "cc18ff28-316c-43a9-9f2c-38e3cc63bc95", "48b1f996-77e3-4a79-b205-3e174be8adb9"
DB, WEB = "0c9f3f0e-1111-2222-3333-444455556601", "0c9f3f0e-1111-2222-3333-444455556602"


@pytest.fixture(params=SAMPLES, ids=lambda path: path.name)
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "state"))


def site(state: Path, host: str) -> Site:
    return Site(host, state / host, state / host / "run", state / host / "dev", "10.0.0.1")


def test_the_coordinator_reads_its_journals(state: Path) -> None:
    journals = Journals(state / "coordinator/plans")
    cut, ended = (journals.read(plan) for plan in ("20261128-230641-30800", "20261128-230640-285e0"))
    assert (cut.status, ended.status) == ("interrupted", "completed")
    assert cut.plan.title == "migrate g from b to a" and cut.plan.holds[0].names == [G]
    assert set(cut.done) < {step.id for step in cut.plan.steps}
    assert ended.done.keys() == {step.id for step in ended.plan.steps}
    for record in (cut, ended):
        for step in record.plan.steps:
            verb = verbs.of(step)
            assert codec.dump(verb).keys() >= step.args.keys() and verb == verbs.of(
                replace(step, args=codec.dump(verb))
            )
            if step.id in record.started:
                found = seen(verb, record.started[step.id])
                assert bool(found) == bool(record.started[step.id]) and found == seen(verb, codec.dump(found))


def test_a_host_reads_what_it_was_told_and_its_marks(state: Path) -> None:
    told = remembered(state / "a")
    assert told is not None and told.pools["default"].type == "directory" and told.served_by == ["transport:nbd"]
    guard = Guard(site(state, "a"))
    assert guard.marked("20261128-230641-30800")
    (mark,) = guard.marks()
    assert mark.names == [G] and mark.coordinator == "admin1"


def test_volumes_are_found_by_their_sidecars(state: Path) -> None:
    directory = state / "a/volumes"
    for name in ("g", "gold"):
        (directory / f"{name}.raw").write_bytes(b"\0" * 2097152)
    place = VolumeDirectory(directory)
    found = {name: place.read(name) for name in ("g", "gold")}
    volumes = {name: sidecar.volume for name, sidecar in found.items() if sidecar}
    assert (volumes["g"].uuid, volumes["g"].origin, volumes["gold"].kind) == (G, GOLD, "image")


def test_grants_are_read_and_changed(state: Path) -> None:
    """Whatever a grant gains, one without it keeps its rights."""
    place = site(state, "a")
    wanted: tuple[Any, ...] = (
        (nbd_names.NbdGrant, G, ["a", "b"]),
        (iscsi_names.IscsiGrant, DB, ["b"]),
        (nfs_names.NfsGrant, WEB, ["b"]),
    )
    for kind, uuid, writers in wanted:
        grants = GrantStore[Any](place, kind)
        (grant,), problems = grants.find()
        assert problems == [] and (grant.volume.uuid, grant.writers) == (uuid, writers)
        grants.save([grant])
        assert grants.find()[0] == [grant]
    iscsi = GrantStore(place, iscsi_names.IscsiGrant)
    (chapped,), _ = iscsi.find()
    chap = chapped.clients["b"].chap
    assert chap is not None and chap.secret.reveal() == "0123456789abcdef0123456789abcdef"
    assert iscsi.fenced("c") and not iscsi.fenced("b")


def test_attachments_are_read(state: Path) -> None:
    b = state / "b"
    kinds: tuple[Any, ...] = (
        (nbd_attach.NbdAttached, b / "nbd/attached", G),
        (Offer, b / "iscsi-attached", DB),
        (nfs_attach.NfsAttached, b / "nfs/attached", WEB),
    )
    for kind, directory, uuid in kinds:
        records, problems = RecordFiles[Any](directory, kind, "the attachment").find()
        assert problems == [] and list(records) == [uuid]


def test_guests_are_read(state: Path) -> None:
    for hypervisor in ("qemu", "libvirt"):
        definition = qemu_definition.load(state / "b" / hypervisor / "g")
        assert definition.guest.disks[0].uuid == G and definition.machine == "pc-i440fx-7.2"
    loaded = inventory.load(state / "inventory.toml")
    (guest,) = files.load_all(loaded.directory / "guests")
    assert guest.name == "g" and guest.disks[0].uuid == G


def test_the_conversation_is_whole(state: Path) -> None:
    """The samples are compared by what they say, so they must say something."""
    lines = (state / "conversation.txt").read_text().splitlines()
    assert [line[:3] for line in lines[:2]] == ["-> ", "<- "] and all(json.loads(line[3:]) for line in lines)
