"""Files with the memory of sleeping guests: which of them are trusted, and that none stands whole beside a guest that
goes on. The monitors of QEMU and libvirt are played here, so that they can be asked what they saw, and when."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotAllowed, NotFound, ServiceUnreachable, StorkitError, TimedOut, Unsafe
from storkit.core.model import Saved
from storkit.hypervisors import _saved as memory
from storkit.hypervisors._libvirt import saving as libvirt
from storkit.hypervisors._libvirt.guests import Guests, KnownGuest
from storkit.hypervisors._qemu import saving as qemu
from storkit.hypervisors._qemu.process import Process
from storkit.plans.plan import Step
from storkit.plans.verbs.sleeping import EndSaved, SpendMemory
from storkit.system import moving as watching
from storkit.system.qemu import qmp
from storkit.system.timeouts import scaled

GUEST, OTHER = "8f1e9b52-95b2-4c8e-8ffb-a5cf4f2a4bd6", "5b0c4f0e-6f0c-4f6e-9d0a-0d4a0d0f4b11"
HOLD, OLD = "0d4a6a5e-2f7b-4d5c-9a3e-8c6f1b2a3d4e", "cc18ff28-316c-43a9-9f2c-38e3cc63bc95"
SAVED = Saved(GUEST, "g", HOLD, {OLD: 1}, "qemu", {})
STREAM = b"LibvirtQemudSave" + b"the guest's memory" * 9


def sealed(path: Path, saved: Saved = SAVED) -> Path:
    path.parent.mkdir(exist_ok=True)
    descriptor = memory.make(path, False, saved.hold)
    os.write(descriptor, STREAM)
    memory.seal(path, descriptor, saved, own=False)
    os.close(descriptor)
    return path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site("a", tmp_path, tmp_path / "run", tmp_path / "dev")


# --- the file ---------------------------------------------------------------------------------------------------------


def test_an_unsealed_file_is_a_partial_one_with_the_stream_alone(tmp_path: Path) -> None:
    path = sealed(tmp_path / "m")
    memory.unseal(path, OLD)
    assert memory.read(path).hold == HOLD, "it is of another sleep"
    os.link(path, memory.partial(path, HOLD))  # killed in seal, before the first name went
    for _ in range(2):
        memory.unseal(path, HOLD)
        assert not path.exists() and memory.partial(path, HOLD).read_bytes() == STREAM


def test_a_file_cut_short_while_it_was_unsealed_is_unsealed_by_the_next_call(tmp_path: Path) -> None:
    path = sealed(tmp_path / "m")
    path.rename(memory.partial(path, HOLD))
    memory.unseal(path, HOLD)
    assert memory.partial(path, HOLD).read_bytes() == STREAM


@pytest.mark.parametrize("mode", [0o602, 0o620])
def test_a_memory_that_others_may_write_is_not_read(mode: int, tmp_path: Path) -> None:
    path = sealed(tmp_path / "m")
    path.chmod(0o644)
    assert memory.read(path).hold == HOLD
    path.chmod(mode)
    with pytest.raises(Unsafe, match="can be written by others"):
        memory.read(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_memory_of_another_user_is_not_read(tmp_path: Path) -> None:
    path = sealed(tmp_path / "m")
    os.chown(path, 12345, -1)
    with pytest.raises(Unsafe, match="can be written by others"):
        memory.read(path)


def test_what_a_file_says_of_itself_may_be_nested_too_deeply(tmp_path: Path) -> None:
    path, text = tmp_path / "m", b"[" * 200_000
    path.write_bytes(text + len(text).to_bytes(8, "little") + memory.MAGIC)
    with pytest.raises(Unsafe, match="is no memory of a guest"):
        memory.read(path)


def test_a_partial_file_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    memory.partial(tmp_path / "m", HOLD).symlink_to(mine)
    with pytest.raises(Unsafe):
        memory.reopen(tmp_path / "m", HOLD)
    with pytest.raises(Conflict):
        memory.reopen(tmp_path / "none", HOLD)


def test_the_hosts_own_place_keeps_another_guests_memory(site: Site) -> None:
    path = sealed(memory.place(site, "g", ""), replace(SAVED, guest=OTHER, hold=OLD))
    with pytest.raises(Conflict, match="another guest g"):
        memory.refuse_taken(path, True, SAVED)
    with pytest.raises(Unsafe, match=OTHER):
        memory.spend(path, True, "g", GUEST)
    assert memory.read(path).guest == OTHER
    memory.spend(path, True, "g", OTHER)
    assert not path.exists()
    memory.spend(path, True, "g", OTHER)


def test_the_hosts_own_place_is_written_over_after_an_earlier_sleep(site: Site) -> None:
    path = sealed(memory.place(site, "g", ""), replace(SAVED, hold=OLD))
    assert memory.refuse_taken(path, True, SAVED) is None
    path.write_bytes(b"?")
    assert memory.refuse_taken(path, True, SAVED) is None
    memory.spend(path, True, "g", GUEST)
    assert not path.exists()


def test_nothing_is_removed_beside_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A volume's home has said which file it is, and may have named one of somebody else's that is being made."""
    theirs = tmp_path / "web.raw.partial"
    theirs.write_bytes(b"an import under way")
    memory.spend(tmp_path / "web.raw", False, "g", GUEST)
    assert theirs.exists()


def test_a_memory_that_is_spent_leaves_nothing_partial(tmp_path: Path) -> None:
    path = sealed(tmp_path / "m")
    os.link(path, memory.partial(path, HOLD))
    memory.spend(path, False, "g", GUEST)
    assert memory.read(path).used and not memory.partial(path, HOLD).exists()


@pytest.mark.parametrize("own", [False, True])
def test_two_guests_that_are_saved_into_one_file_do_not_meet(own: bool, tmp_path: Path) -> None:
    path, other = tmp_path / "m", replace(SAVED, guest=OTHER, name="h", hold=OLD)
    first = memory.make(path, own, HOLD)
    os.write(first, STREAM[:20])
    second = memory.make(path, own, OLD)
    os.write(second, b"another guest's")
    os.write(first, STREAM[20:])
    memory.seal(path, first, SAVED, own)
    with pytest.raises(Conflict):
        memory.seal(path, second, other, own)
    memory.unseal(path, OLD)
    memory.partial(path, OLD).unlink()
    assert memory.read(path).hold == HOLD and path.read_bytes().startswith(STREAM)
    assert [each.name for each in tmp_path.iterdir()] == ["m"]
    for descriptor in (first, second):
        os.close(descriptor)


def test_a_save_that_is_refused_leaves_another_s_alone(
    site: Site, machine: Machine, process: Process, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    other = memory.make(path, False, OLD)
    os.write(other, b"another guest's")
    qemu.unsave(site, process, SAVED, str(path))
    memory.spend(path, False, "g", GUEST)
    assert memory.partial(path, OLD).read_bytes() == b"another guest's"
    assert qemu.save(site, process, SAVED, str(path), 9).size == len(STREAM)
    with pytest.raises(Conflict, match="exists already"):
        memory.seal(path, other, replace(SAVED, guest=OTHER, hold=OLD), False)
    os.close(other)
    assert memory.read(path).hold == HOLD


# --- QEMU -------------------------------------------------------------------------------------------------------------


class Lives(Process):
    def alive(self) -> bool:
        return True


@dataclass
class Machine:
    """A guest's QEMU as its monitor shows it."""

    runs: str = "running"
    moves: str = "none"
    hangs: bool = False
    """Its file system answers nothing: what was called off does not end."""
    on_cont: Callable[[], Any] = lambda: None
    did: list[str] = field(default_factory=list)
    file: int = -1

    async def send_file(self, descriptor: int, name: str) -> None:
        self.file = descriptor

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, **_: Any) -> Any:
        if not command.startswith("query"):
            self.did.append(command)
        match command:
            case "query-status":
                return {"status": self.runs}
            case "query-migrate":
                return {"status": self.moves}
            case "query-version":
                return {"qemu": {"major": 7, "minor": 2, "micro": 0}}
            case "stop":
                self.runs = "paused"
            case "migrate":
                os.write(self.file, STREAM)
                self.moves, self.runs = "completed", "postmigrate"
            case "migrate_cancel":
                self.moves = "cancelling" if self.hangs else "cancelled"
            case "cont":
                assert self.moves not in ("active", "cancelling"), "it goes on while it is being written"
                self.on_cont()
                self.runs = "running"
        return None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    it = Machine()

    @asynccontextmanager
    async def connect(path: Path, **_: Any) -> AsyncIterator[Machine]:
        yield it

    monkeypatch.setattr(qmp, "connect", connect)
    return it


@pytest.fixture
def process(tmp_path: Path) -> Process:
    (tmp_path / "run").mkdir()
    return Lives("g", tmp_path / "run")


def test_no_whole_file_stands_beside_a_guest_of_qemu_that_goes_on(
    site: Site, machine: Machine, process: Process, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    assert qemu.save(site, process, SAVED, str(path), 9).version == "7.2.0"

    def on_cont() -> None:
        machine.did.append("seen")
        with pytest.raises(NotFound):
            memory.read(path)
        with pytest.raises(Unsafe):
            memory.read(memory.partial(path, HOLD))

    machine.on_cont = on_cont
    qemu.unsave(site, process, SAVED, str(path))
    assert machine.did[-1] == "seen" and machine.runs == "running" and not list(tmp_path.glob("m*"))


def test_a_save_that_fails_once_the_file_has_its_name_leaves_no_file(
    site: Site, machine: Machine, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    seal = memory.seal

    def fails(*args: Any) -> Saved:
        seal(*args)
        raise Conflict("the disk fails", "")

    monkeypatch.setattr(memory, "seal", fails)
    with pytest.raises(Conflict, match="the disk fails"):
        qemu.save(site, process, SAVED, str(path), 9)
    assert machine.runs == "running" and not list(tmp_path.glob("m*")) and not process.saving.exists()


def test_an_unsaved_guest_that_was_not_let_go_on_yet_is_saved_by_the_same_plan(
    site: Site, machine: Machine, process: Process, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    qemu.save(site, process, SAVED, str(path), 9)
    whole = path.read_bytes()
    memory.unseal(path, HOLD)
    qemu.save(site, process, SAVED, str(path), 9)
    assert path.read_bytes() == whole and machine.did.count("migrate") == 1


@pytest.mark.parametrize(("runs", "moves"), [("postmigrate", "completed"), ("paused", "active")])
def test_a_guest_that_stands_still_since_another_save_is_not_saved_empty(
    runs: str, moves: str, site: Site, machine: Machine, process: Process, tmp_path: Path
) -> None:
    process.saving.write_text(OLD)
    machine.runs, machine.moves = runs, moves
    with pytest.raises(Conflict, match="stands still since it was saved before"):
        qemu.save(site, process, SAVED, str(tmp_path / "m"), 9)
    assert process.saving.read_text() == OLD and not list(tmp_path.glob("m*")) and machine.did == []


def test_a_save_is_begun_anew_from_the_start_of_the_file(
    site: Site, machine: Machine, process: Process, tmp_path: Path
) -> None:
    """Killed between the mark and the migration, with more in the file than comes now."""
    process.saving.write_text(HOLD)
    memory.partial(tmp_path / "m", HOLD).write_bytes(STREAM + b"more")
    assert qemu.save(site, process, SAVED, str(tmp_path / "m"), 9).size == len(STREAM)


def test_what_a_hanging_file_system_holds_up_is_not_waited_for_without_end(
    site: Site, machine: Machine, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "CALL_OFF", 0.05)
    process.saving.write_text(HOLD)
    machine.runs, machine.moves, machine.hangs = "paused", "active", True
    memory.partial(tmp_path / "m", HOLD).touch()
    for call in (
        lambda: qemu.unsave(site, process, SAVED, str(tmp_path / "m")),
        lambda: qemu.forget(process),
    ):
        with pytest.raises(TimedOut, match="does not let go") as caught:
            call()
        assert caught.value.hint == "storkit plan rollback, once the file system answers"
    assert process.saving.exists() and "cont" not in machine.did


def test_a_guest_that_is_woken_is_not_written_any_more(machine: Machine, process: Process) -> None:
    machine.runs, machine.moves = "paused", "active"
    qemu.forget(process)
    assert machine.did == [], "nobody has saved it"
    process.saving.write_text(HOLD)
    qemu.forget(process)
    assert machine.did == ["migrate_cancel"] and not process.saving.exists()


# --- libvirt ----------------------------------------------------------------------------------------------------------


DOMAIN = """\
<domain type='qemu'><name>g</name><devices>
  <disk type='block'><source dev='/dev/storkit/g'/><target dev='vda'/></disk>
</devices></domain>
"""


@dataclass
class Domain:
    """A guest of libvirt's as virsh shows it."""

    base: Path
    status: str = "running"
    did: list[str] = field(default_factory=list)
    on_restore: Callable[[Path], Any] = lambda source: None

    def one(self, name: str) -> KnownGuest:
        return KnownGuest(name, GUEST, cast(Any, self.status))

    def directory(self, name: str) -> Path:
        return self.base

    @property
    def virsh(self) -> Domain:
        return self

    def job(self, uuid: str) -> None:
        return None

    def __call__(self, command: str, *words: str, timeout: float = 0) -> str:
        self.did.append(command)
        if command == "save":
            Path(words[1]).write_bytes(STREAM)
            self.status = "stopped"
        if command == "restore":
            assert Path(words[2]).read_text().count("/dev/storkit/g") == 1, "its disks are where they are here"
            self.on_restore(Path(words[0]))
            self.status = "running"
        if command == "save-image-dumpxml":
            return DOMAIN.replace("/dev/storkit/g", "/dev/vg/before")
        return "Running against daemon: 9.0.0"


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    (tmp_path / "libvirt").mkdir()
    (tmp_path / "libvirt/domain.xml").write_text(DOMAIN)
    return Domain(tmp_path / "libvirt")


def guests(domain: Domain) -> Guests:
    return cast(Guests, domain)


def test_no_whole_file_stands_beside_a_guest_of_libvirt_that_goes_on(
    site: Site, domain: Domain, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    libvirt.save(site, guests(domain), "g", SAVED, str(path))

    def on_restore(source: Path) -> None:
        assert source == memory.partial(path, HOLD) and source.read_bytes() == STREAM and not path.exists()
        if domain.did.count("restore") == 1:
            raise Conflict("libvirtd has gone", "")

    domain.on_restore = on_restore
    with pytest.raises(Unsafe, match="is not read again"):
        libvirt.unsave(site, guests(domain), "g", SAVED, str(path))
    libvirt.save(site, guests(domain), "g", SAVED, str(path))
    assert memory.read(path).hold == HOLD and domain.did.count("save") == 1
    libvirt.unsave(site, guests(domain), "g", SAVED, str(path))
    assert domain.status == "running" and not list(tmp_path.glob("m*"))


def test_what_another_sleep_has_left_under_libvirt_is_not_taken_for_this_one(
    site: Site, domain: Domain, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    domain.status = "stopped"
    for mark in (None, OLD):
        if mark:
            (domain.base / "saving").write_text(mark)
        memory.partial(path, HOLD).write_bytes(STREAM)
        with pytest.raises(NotFound):
            libvirt.save(site, guests(domain), "g", SAVED, str(path))
        libvirt.unsave(site, guests(domain), "g", SAVED, str(path))
    assert not path.exists() and "restore" not in domain.did


@pytest.mark.parametrize("act", [libvirt.save, libvirt.unsave])
def test_a_libvirtd_that_is_down_is_not_waited_for(
    act: Callable[..., Any], site: Site, domain: Domain, tmp_path: Path
) -> None:
    domain.status = "unknown"
    with pytest.raises(ServiceUnreachable, match="libvirtd does not answer"):
        act(site, guests(domain), "g", SAVED, str(tmp_path / "m"))
    assert domain.did == [] and not list(tmp_path.glob("m*"))


def test_a_memory_that_is_read_is_waited_for_while_its_reader_gets_on(
    site: Site, domain: Domain, tmp_path: Path
) -> None:
    signs = threading.Semaphore(0)
    path = tmp_path / "m"
    libvirt.save(site, guests(domain), "g", SAVED, str(path))

    def reads(source: Path) -> None:
        with source.open("rb", buffering=0) as file:
            for _ in range(3):
                assert file.read(5) and signs.acquire(timeout=scaled(20))

    domain.on_restore = reads
    with watching.watched(signs.release):
        libvirt.unsave(site, guests(domain), "g", SAVED, str(path))
    assert domain.did[-1] == "restore"


# --- the steps --------------------------------------------------------------------------------------------------------


def ran(hypervisor: Any) -> Any:
    return SimpleNamespace(on=lambda host: SimpleNamespace(hypervisor=lambda target: hypervisor))


STEP = Step("1", "", "a", "hypervisor:qemu", "")


def test_a_guest_that_runs_since_it_was_saved_is_not_ended() -> None:
    ended: list[str] = []
    for status in ("running", "paused", "stopped"):
        state = SimpleNamespace(status=status)
        host = SimpleNamespace(
            find=lambda names, state=state: [state], stop=lambda name, force, status=status: ended.append(status)
        )
        if status == "running":
            with pytest.raises(Unsafe, match="runs since it was saved"):
                EndSaved("g").act(ran(host), STEP)
        else:
            EndSaved("g").act(ran(host), STEP)
    assert ended == ["paused", "stopped"]


@pytest.mark.parametrize("error", [Conflict, NotAllowed, Unsafe])
def test_a_file_that_cannot_be_marked_as_used_does_not_keep_the_plan_from_ending(error: type[StorkitError]) -> None:
    def spend(name: str, guest: str, file: str) -> None:
        raise error("may not", "")

    assert SpendMemory("g", GUEST, "/m").act(ran(SimpleNamespace(spend=spend)), STEP) == "may not"
    json.dumps(SpendMemory("g", GUEST, "/m").act(ran(SimpleNamespace(spend=lambda *_: None)), STEP))
