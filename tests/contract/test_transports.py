"""What storkit.core.backend.Transport promises, asked of every transport there is, with its real servers and clients.

A transport without `tests/contract/transport_NAME.py` fails here, or, if it is of another package, without a module of
its own that the entry points of the group `storkit.rigs` name (tests/contract/rig.py says what is in either).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

from storkit.core import codec, registry
from storkit.core.backend import Transport
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe
from storkit.core.model import ATTACHED, Attachment, Client, Evidence, Export, Offer, Volume
from tests.contract.rig import BLOCK, Rig, RigSetup, wait_until

REFUSED = (OSError, StorkitError)


def contract_modules() -> dict[str, ModuleType]:
    """Every transport's module, of this directory or of its own package."""
    found: dict[str, ModuleType] = {}
    theirs = {entry.name: entry.module for entry in entry_points(group="storkit.rigs")}
    for name in registry.names(Transport):  # type: ignore[type-abstract]
        file = Path(__file__).with_name(f"transport_{name}.py")
        if not file.exists() and name in theirs:
            found[name] = importlib.import_module(theirs[name])
            continue
        assert file.exists(), f"transport {name} has no {file.name}: its contract is not tested"
        spec = importlib.util.spec_from_file_location(f"contract_transport_{name}", file)
        assert spec is not None and spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    return found


def transport_setups(kind: str = "setups") -> dict[str, RigSetup]:
    """`technology-variant` to what prepares its rig: those of the `setups` or the `lab_setups` of each transport."""
    found: dict[str, RigSetup] = {}
    for name, module in contract_modules().items():
        assert hasattr(module, "setups") or hasattr(module, "lab_setups"), f"{module.__file__} has no set-ups"
        if hasattr(module, kind):
            found |= {f"{name}-{variant}": setup for variant, setup in getattr(module, kind)().items()}
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rig_setup" in metafunc.fixturenames:
        variants = [
            pytest.param(setup, id=name, marks=[pytest.mark.slow] if _slow(name, metafunc.function.__name__) else [])
            for name, setup in transport_setups().items()
        ]
        metafunc.parametrize("rig_setup", variants)


BY_FORMAT = {
    "test_the_server_decides_who_writes",
    "test_restore_brings_servers_back_with_the_rights_they_had",
    "test_who_writes_a_volume_past_its_server_is_named_before_a_right_is_given",
}
"""What a server opens, and locks, by the format of a disk. All else is the same bytes on the same wire."""


def _slow(variant: str, test: str) -> bool:
    return variant.endswith("-qcow2") and test not in BY_FORMAT


@pytest.fixture
def rig(rig_setup: RigSetup) -> Iterator[Rig]:
    """A rig; a test that passes must be able to take everything back by the undo verbs, with nothing left."""
    with rig_setup() as made:
        yield made
        made.recover()
        made.home.unfence("b")
        for export in made.home.find_exports():
            volume = Volume(export.volume, export.uuid, 0)
            for site in (made.home, made.far):
                site.detach([volume])
            made.home.unexport([volume], [export.client])
        for site in (made.home, made.far):
            found = site.find_attachments()
            site.detach([Volume(attachment.volume, attachment.uuid, attachment.size) for attachment in found])
        left = made.leftovers()
        assert not left, "\n".join(left)


def attach(rig: Rig, volumes: list[Volume], client: Client) -> list[Attachment]:
    return (rig.home if client is rig.a else rig.far).attach(rig.home.offers(volumes, client.name))


def both(rig: Rig, volume: Volume) -> tuple[Attachment, Attachment]:
    """The volume exported to and attached on a and b; nobody writes it yet."""
    rig.home.export([volume], [rig.a, rig.b])
    return attach(rig, [volume], rig.a)[0], attach(rig, [volume], rig.b)[0]


def can_write(rig: Rig, attachment: Attachment, byte: int, offset: int = 0) -> bool:
    """Try to write a block. What is said must be so: the block is read again."""
    block = bytes([byte]) * BLOCK
    try:
        with rig.access(attachment) as disk:
            disk.write(offset, block)
    except REFUSED:
        with rig.access(attachment) as disk:
            assert disk.read(offset, BLOCK) != block, "the write was refused, and done"
        return False
    with rig.access(attachment) as disk:
        assert disk.read(offset, BLOCK) == block, "the write was accepted, and lost"
    return True


def rights(rig: Rig, volume: Volume) -> dict[str, bool]:
    exports = rig.home.find_exports([volume.uuid])
    assert all(export.live for export in exports)
    return {export.client: export.writable for export in exports}


def test_nothing_is_exported_at_first(rig: Rig) -> None:
    volume = rig.volume("v")
    assert rig.home.find_exports() == [] and rig.far.find_attachments() == []
    with pytest.raises(NotFound, match="not exported"):
        rig.home.offers([volume], "b")
    rig.home.unexport([volume], ["b"])
    rig.far.detach([volume])


def test_an_offer_is_for_the_client_it_was_exported_to(rig: Rig) -> None:
    one, two = rig.volume("one"), rig.volume("two")
    rig.home.export([one], [rig.b])
    (offer,) = rig.home.offers([one], "b")
    assert (offer.volume, offer.uuid, offer.size, offer.client) == ("one", one.uuid, one.size, "b")
    assert not offer.writable and one.uuid in offer.identity
    for volumes, client in (([one], "a"), ([two], "b"), ([one, two], "b")):
        with pytest.raises(NotFound, match="not exported"):
            rig.home.offers(volumes, client)


def test_a_damaged_record_of_an_export_hides_no_other(rig: Rig) -> None:
    bad, good = rig.volume("bad"), rig.volume("good")
    rig.home.export([bad, good], [rig.b])
    (expected,) = rig.home.find_exports([good.uuid])
    # Every technology keeps what it has granted there: a file for each volume.
    path = rig.home.site.state / rig.home.name / f"{bad.uuid}.json"
    for nonsense in (b"{", b"[]", b"\0"):
        whole = rig.swap(path, nonsense)
        try:
            found = rig.home.look_exports()
            assert found.exports == [expected]
            (finding,) = found.damaged
            assert str(path) in finding.message and "damaged" in finding.message and finding.hint
            assert rig.home.look_exports([good.uuid]).damaged == []
            assert rig.home.find_exports([good.uuid]) == [expected]
            with pytest.raises(Unsafe, match="is damaged"):
                rig.home.find_exports()
        finally:
            rig.swap(path, whole)
    assert rig.home.look_exports().damaged == [] and len(rig.home.find_exports()) == 2


def test_every_record_crosses_to_another_host_as_json(rig: Rig) -> None:
    volume = rig.volume("v")
    there = both(rig, volume)[1]
    offers = rig.home.offers([volume], "b")
    assert codec.load(list[Offer], json.loads(json.dumps(codec.dump(offers, reveal=True)))) == offers
    assert codec.load(Attachment, codec.dump(there)) == there
    exports = rig.home.find_exports()
    assert codec.load(list[Export], codec.dump(exports)) == exports
    evidence = rig.far.evidence([volume])
    assert codec.load(list[Evidence], codec.dump(evidence)) == evidence
    for offer in offers:
        if offer.credential and offer.credential.secret:
            shown = json.dumps([codec.dump(offers), codec.dump(there), codec.dump(exports)]) + repr(offers)
            assert offer.credential.secret.reveal() not in shown


def test_exporting_and_attaching_again_changes_nothing(rig: Rig) -> None:
    volumes = [rig.volume(name) for name in ("one", "two", "three")]
    exports = rig.home.export(volumes, [rig.a, rig.b])
    assert sorted((export.volume, export.client, export.writable) for export in exports) == [
        (name, client, False) for name in ("one", "three", "two") for client in ("a", "b")
    ]
    rig.set_writers(volumes, ["a"])
    first = attach(rig, volumes, rig.b)
    assert [attachment.volume for attachment in first] == ["one", "two", "three"]
    assert len(rig.home.export(volumes, [rig.b])) == 3
    assert attach(rig, volumes, rig.b) == first
    assert rig.far.find_attachments([volumes[1].uuid]) == [first[1]]
    assert all(rights(rig, volume) == {"a": True, "b": False} for volume in volumes)
    for _ in range(2):
        rig.far.detach(volumes)
        assert rig.far.find_attachments() == []
    for _ in range(2):
        rig.home.unexport(volumes, ["b"])
        assert {export.client for export in rig.home.find_exports()} == {"a"}
    assert rights(rig, volumes[0]) == {"a": True}


def test_the_stable_path_is_the_same_name_on_every_host(rig: Rig) -> None:
    here, there = both(rig, rig.volume("web"))
    assert Path(here.path).name == Path(there.path).name == "web"
    assert Path(here.path).parent == rig.home.site.dev and Path(there.path).parent == rig.far.site.dev


def test_the_server_decides_who_writes(rig: Rig) -> None:
    volume = rig.volume("v")
    here, there = both(rig, volume)
    assert not can_write(rig, here, 1) and not can_write(rig, there, 2)
    rig.set_writers([volume], ["a"])
    here, there = both(rig, volume)
    assert can_write(rig, here, 3) and not can_write(rig, there, 4)
    if type(rig.home).window:
        rig.set_writers([volume], ["a", "b"])
        here, there = both(rig, volume)
        assert can_write(rig, here, 5) and can_write(rig, there, 6, BLOCK)
        with rig.access(here) as disk:
            assert disk.read(BLOCK, BLOCK) == bytes([6]) * BLOCK
    rig.set_writers([volume], ["b"])
    here, there = both(rig, volume)
    assert rights(rig, volume) == {"a": False, "b": True}
    assert not can_write(rig, here, 7) and can_write(rig, there, 8)
    rig.set_writers([volume], [])
    here, there = both(rig, volume)
    assert not can_write(rig, here, 9) and not can_write(rig, there, 10)


def test_a_right_is_taken_from_a_disk_that_is_in_use(rig: Rig) -> None:
    volume = rig.volume("v")
    rig.home.export([volume], [rig.a, rig.b])
    rig.set_writers([volume], ["a"])
    here, there = both(rig, volume)
    with rig.access(here) as disk:
        disk.write(0, b"a" * BLOCK)
        rig.set_writers([volume], ["b"])
        with rig.access(there) as other:
            other.write(0, b"b" * BLOCK)
        with pytest.raises(REFUSED):
            disk.write(0, b"x" * BLOCK)
    with rig.access(there) as other:
        assert other.read(0, BLOCK) == b"b" * BLOCK


HOLD = 'exec 3<>"$0" 4<>"$1"; sleep 600 >/dev/null 2>&1 </dev/null & echo $!'
"""What opens two files or devices for writing, and asks for no lock; its pid."""


def test_who_writes_a_volume_past_its_server_is_named_before_a_right_is_given(rig: Rig) -> None:
    volume, other = rig.volume("v"), rig.volume("other")
    rig.home.export([volume], [rig.a, rig.b])
    rig.home.set_writers([volume], ["a"])
    pid = rig.at_home("sh", "-c", HOLD, volume.path, other.path).strip()
    try:
        with pytest.raises(Conflict, match=rf"volume v is open for writing .*\(pid {pid}\)"):
            rig.home.set_writers([volume], ["a", "b"])
        with pytest.raises(Conflict, match=rf"volume other is open for writing .*\(pid {pid}\)"):
            rig.home.export([other], [rig.b])
        assert rights(rig, volume) == {"a": True, "b": False} and rig.home.find_exports([other.uuid]) == []
        shown = rig.home.look_exports().exports
        assert len(shown) == 2 and all(f"ps -fp {pid}" in export.others for export in shown)
        rig.home.export([volume], [rig.a])  # what it has already
        rig.home.set_writers([volume], [])  # a right is taken, whoever else there is
        assert rights(rig, volume) == {"a": False, "b": False}
    finally:
        rig.at_home("kill", pid)
    wait_until(lambda: not any(export.others for export in rig.home.look_exports().exports))
    rig.home.set_writers([volume], ["b"])
    assert rights(rig, volume) == {"a": False, "b": True}


def test_only_hosts_with_an_export_can_be_writers(rig: Rig) -> None:
    one, two = rig.volume("one"), rig.volume("two")
    rig.home.export([one, two], [rig.a])
    rig.home.export([one], [rig.b])
    with pytest.raises(NotFound, match="not exported"):
        rig.set_writers([one, two], ["b"])
    assert rights(rig, one) == {"a": False, "b": False} and rights(rig, two) == {"a": False}


def test_nobody_writes_images_snapshots_and_unfinished_imports(rig: Rig) -> None:
    volumes = [rig.volume("i", kind="image"), rig.volume("s", kind="snapshot"), rig.volume("u", made="importing")]
    volumes.append(rig.volume("m", made="moving"))
    rig.home.export(volumes, [rig.a])
    for volume, here in zip(volumes, attach(rig, volumes, rig.a), strict=True):
        with pytest.raises(Unsafe):
            rig.set_writers([volume], ["a"])
        assert rights(rig, volume) == {"a": False}
        assert not can_write(rig, here, 1)
    rig.set_writers(volumes, [])


def test_it_becomes_larger_under_those_who_have_it(rig: Rig) -> None:
    """They are told by another attach, and lose no right; what was there stays, what is new is zeros."""
    volume, other = rig.volume("v"), rig.volume("w")
    both(rig, volume)
    rig.home.export([other], [rig.b])
    attach(rig, [other], rig.b)
    rig.set_writers([volume], ["b"])
    (far,) = attach(rig, [volume], rig.b)
    assert can_write(rig, far, 0x31)
    larger = rig.grow(volume, 2 * volume.size)
    for _ in range(2):  # and once more: a plan that was cut short is resumed
        rig.home.grow([larger])
    (near,), (far,) = attach(rig, [larger], rig.a), attach(rig, [larger], rig.b)
    assert near.size == far.size == larger.size and rights(rig, volume) == {"a": False, "b": True}
    seen = [site.evidence([larger])[0] for site in (rig.home, rig.far)]
    assert seen[0].size == seen[1].size == larger.size and seen[0].identity == seen[1].identity
    with rig.access(far) as disk:
        assert disk.read(0, BLOCK) == b"\x31" * BLOCK and disk.read(larger.size - BLOCK, BLOCK) == bytes(BLOCK)
    assert can_write(rig, far, 0x32, larger.size - BLOCK) and not can_write(rig, near, 0x33, larger.size - BLOCK)
    with pytest.raises(Conflict, match="cannot become smaller"):
        rig.home.grow([volume])
    rig.kill_servers()
    rig.home.restore()
    assert [export.live for export in rig.home.find_exports([volume.uuid])] == [True, True]
    assert rig.home.offers([larger], "b")[0].size == larger.size, "its server begins with that size"


def test_another_disk_than_the_one_meant_is_refused(rig: Rig) -> None:
    mine, theirs = rig.volume("mine"), rig.volume("theirs")
    rig.home.export([mine, theirs], [rig.b])
    wanted, other = rig.home.offers([mine, theirs], "b")
    # The right place and another identity; another place and the right identity.
    for false in (
        replace(wanted, identity=other.identity),
        replace(other, volume="mine", uuid=wanted.uuid, identity=wanted.identity),
        replace(wanted, size=wanted.size * 2),
    ):
        with pytest.raises(Unsafe):
            rig.far.attach([false])
        assert rig.far.find_attachments() == []
        assert not rig.has_path(rig.far, "mine")
    assert rig.far.attach([wanted])[0].uuid == mine.uuid


def test_evidence_is_alike_on_two_hosts_and_differs_for_another_disk(rig: Rig) -> None:
    volume, other = rig.volume("v"), rig.volume("other")
    for disk in (volume, other):
        rig.home.export([disk], [rig.a, rig.b])
        rig.set_writers([disk], ["a"])
        both(rig, disk)
    assert can_write(rig, rig.home.find_attachments([volume.uuid])[0], 5)
    (here,), (there,) = rig.home.evidence([volume]), rig.far.evidence([volume])
    assert (here.host, there.host) == ("a", "b")
    assert (here.identity, here.size, here.blocks) == (there.identity, there.size, there.blocks)
    assert here.size == volume.size and "0" in here.blocks and len(here.blocks) > 1
    (another,) = rig.far.evidence([other], [int(offset) for offset in here.blocks])
    assert another.identity != there.identity and another.blocks.keys() == there.blocks.keys()
    assert another.blocks["0"] != there.blocks["0"]
    assert can_write(rig, rig.home.find_attachments([volume.uuid])[0], 6)
    (later,) = rig.far.evidence([volume], [0])
    assert later.blocks.keys() == {"0"} and later.blocks["0"] != there.blocks["0"]  # never from a cache
    with pytest.raises(NotFound):
        rig.far.evidence([rig.volume("unattached")])


def test_an_attachment_that_has_lost_its_connection_is_said_to_be_broken_and_attach_mends_it(rig: Rig) -> None:
    volume, other = rig.volume("v"), rig.volume("other")
    rig.home.export([volume, other], [rig.b])
    rig.set_writers([volume], ["b"])
    there, well = attach(rig, [volume, other], rig.b)
    assert can_write(rig, there, 1)
    rig.disconnect(there)
    found = {attachment.volume: attachment for attachment in rig.far.find_attachments()}
    alike = replace(found["v"], state=ATTACHED, paths=there.paths) == there
    assert found["v"].broken and alike and found["v"].lost == found["v"].paths and found["other"] == well
    with pytest.raises(StorkitError) as refused:
        rig.far.evidence([volume, other])
    # Of a host that is asked over the wire the message is marked as its own.
    said = refused.value.message.removeprefix("b: ")
    assert said == f"volume v is attached on b, and that is broken: {found['v'].broken}"
    assert refused.value.hint == "storkit attach v --on b"
    rig.set_writers([volume], ["b"])  # as `attach` does before
    assert attach(rig, [volume], rig.b) == [there] and rig.far.find_attachments([volume.uuid]) == [there]
    assert rig.far.evidence([volume])[0].size == volume.size
    assert can_write(rig, there, 2)
    rig.disconnect(there)
    rig.far.detach([volume])
    assert rig.far.find_attachments() == [well] and not rig.has_path(rig.far, "v")


def test_a_fenced_host_is_cut_off_and_kept_out(rig: Rig) -> None:
    volume, other = rig.volume("v"), rig.volume("other")
    rig.home.export([volume, other], [rig.a, rig.b])
    rig.set_writers([volume], ["b"])
    rig.set_writers([other], ["a"])
    mine = attach(rig, [other], rig.a)[0]
    there = attach(rig, [volume], rig.b)[0]
    with rig.access(there) as disk:
        disk.write(0, b"b" * BLOCK)
        had = rig.home.fence("b")
        assert sorted((export.volume, export.client, export.writable) for export in had) == [
            ("other", "b", False),
            ("v", "b", True),
        ]
        with pytest.raises(REFUSED):
            disk.write(0, b"x" * BLOCK)
    with pytest.raises(REFUSED), rig.access(there) as disk:
        disk.read(0, BLOCK)
    assert {export.client for export in rig.home.find_exports()} == {"a"}
    assert can_write(rig, mine, 3)
    assert rig.home.fence("b") == []
    with pytest.raises(Unsafe, match="fenced"):
        rig.home.export([volume], [rig.b])
    rig.home.unfence("b")
    rig.home.unfence("b")
    assert {export.client for export in rig.home.find_exports()} == {"a"}
    rig.home.export([volume], [rig.b])
    assert rights(rig, volume)["b"] is False


@pytest.mark.power
def test_a_host_is_detached_though_the_server_is_dead(rig: Rig) -> None:
    volume = rig.volume("v")
    both(rig, volume)
    rig.kill_servers()
    assert [export.live for export in rig.home.find_exports([volume.uuid])] == [False, False]
    rig.far.detach([volume])
    assert rig.far.find_attachments() == []
    assert not rig.has_path(rig.far, "v")
    rig.home.unexport([volume], ["a", "b"])
    assert rig.home.find_exports() == []


@pytest.mark.power
def test_restore_brings_servers_back_with_the_rights_they_had(rig: Rig) -> None:
    volume, other = rig.volume("v"), rig.volume("other")
    rig.home.export([volume, other], [rig.a, rig.b])
    rig.set_writers([volume], ["b"])
    there = both(rig, volume)[1]
    assert can_write(rig, there, 4)
    rig.kill_servers()
    back = rig.home.restore()
    assert len(back) == 4 and all(export.live for export in back)
    assert rights(rig, volume) == {"a": False, "b": True} and rights(rig, other) == {"a": False, "b": False}
    here, there = both(rig, volume)
    with rig.access(there) as disk:
        assert disk.read(0, BLOCK) == bytes([4]) * BLOCK
    assert can_write(rig, there, 5) and not can_write(rig, here, 6)
    assert rig.home.restore() == rig.home.find_exports()


@pytest.mark.power
def test_a_right_that_was_taken_before_a_kill_stays_taken(rig: Rig) -> None:
    volume = rig.volume("v")
    rig.home.export([volume], [rig.a, rig.b])
    rig.set_writers([volume], ["a"])
    rig.home.fence("b")
    rig.kill_servers()
    rig.home.restore()
    assert rights(rig, volume) == {"a": True}
    with pytest.raises(NotFound):
        rig.home.offers([volume], "b")
