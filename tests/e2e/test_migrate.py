"""Real guests that move between two hosts, and everything that must not happen while they do."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storkit.core import codec
from storkit.core.errors import StorkitError
from storkit.core.model import Attachment
from storkit.system import timeouts
from storkit.tech.nbd import wire as nbd_wire
from tests.e2e.world import World, each_format
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e


def attachment(world: World, host: str) -> Attachment | None:
    """What `host` has of the volume g."""
    found = world.storkit("--json", "volume", "show", "g").json["attachments"]
    return next((codec.load(Attachment, data) for data in found if data["host"] == host), None)


def can_write(world: World, host: str) -> bool:
    """Try to write the disk's last sector, which the guest leaves alone, over what `host` has attached.

    A server's refusal is False; anything else that goes wrong is an error of the test.
    """
    there = attachment(world, host)
    if there is None:
        return False
    try:
        write(there.source.socket, there)
    except (StorkitError, OSError):
        return False
    return True


def write(socket: str, there: Attachment) -> None:
    with nbd_wire.NbdConnection(socket) as wire:
        wire.go(there.source.export)
        wire.request(nbd_wire.WRITE, there.size - 512, payload=os.urandom(512))


def server(world: World) -> int:
    """The process that serves the volume g."""
    (line,) = [line for line in world.processes() if "qemu-storage-daemon" in line]
    return int(line.partition(":")[0])


def stop_and_verify(world: World) -> bootsector.Report:
    world.storkit("guest", "stop", "g", "--force")
    report = bootsector.verify(world.disk())
    assert report.clean, report
    assert world.leftovers() == []
    return report


@each_format
def test_there_and_back(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    for destination in ("b", "a", "b"):
        moved = world.storkit("--json", "migrate", "run", "g", "--to", destination).json
        assert moved["migration"]["total_ms"] > 0
        proof = moved["proof"][0]
        assert sorted(proof["hosts"]) == ["a", "b"] and proof["blocks"] > 1 and proof["uuid"] in proof["identity"]
        status = world.status()
        assert status["places"] == {destination: "running"}
        assert status["writers"] == [destination] and not status["window"]
    stop_and_verify(world)


def test_two_hosts_by_url_without_an_inventory(tmp_path: Path) -> None:
    """No inventory, no root: XDG directories and host URLs are all it takes."""
    world = World(tmp_path)
    world.environment |= {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    world.words = lambda *words: [str(word) for word in words]  # type: ignore[method-assign]
    try:
        a, b = f"local:{tmp_path}/a", f"local:{tmp_path}/b"
        world.guest()
        world.storkit("guest", "start", "g", "--on", a)
        world.storkit("migrate", "run", "g", "--to", b)
        assert world.running() == [b]
        world.storkit("migrate", "run", "g", "--to", a)
        assert world.running() == [a]
        world.storkit("guest", "stop", "g", "--force")
        assert bootsector.verify(world.disk()).clean
        world.storkit("guest", "delete", "g")
        world.storkit("volume", "delete", "g")
        assert world.leftovers() == []
    finally:
        world.clear()


@each_format
def test_only_the_window_has_two_writers(world: World) -> None:
    """Before, during and after a migration the server lets exactly those write who may."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    assert can_write(world, "a") and not can_write(world, "b")
    world.storkit("attach", "g", "--on", "b", "--read-only")
    assert attachment(world, "b") is not None
    assert can_write(world, "a") and not can_write(world, "b")
    world.storkit("migrate", "prepare", "g", "--to", "b")
    assert world.status()["window"]
    assert can_write(world, "a") and can_write(world, "b")
    world.storkit("migrate", "abort", "g")
    assert can_write(world, "a") and not can_write(world, "b")
    world.storkit("migrate", "run", "g", "--to", "b")
    assert can_write(world, "b") and not can_write(world, "a")
    stop_and_verify(world)


def test_a_connection_that_outlives_its_right_is_cut(world: World) -> None:
    """The old source keeps its socket open and its export's name: the server refuses both."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    there = attachment(world, "a")
    assert there is not None
    socket = str(Path(there.path).readlink())
    with nbd_wire.NbdConnection(socket) as old:
        old.go(there.source.export)
        old.request(nbd_wire.WRITE, there.size - 512, payload=b"a" * 512)
        world.storkit("migrate", "run", "g", "--to", "b")
        with pytest.raises((StorkitError, OSError)):
            old.request(nbd_wire.WRITE, there.size - 512, payload=b"b" * 512)
    with pytest.raises((StorkitError, OSError)):
        write(socket, there)
    stop_and_verify(world)


def test_prepare_migrate_by_hand_finish(world: World) -> None:
    """The hypervisor can be driven by someone else between prepare and finish."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    prepared = world.storkit("--json", "migrate", "prepare", "g", "--to", "b").json
    assert prepared["migration"] is None and prepared["proof"]
    world.storkit("migrate", "prepare", "g", "--to", "b")
    by_hand(world)
    assert world.running() == ["b"] and world.status()["window"]
    world.storkit("migrate", "finish", "g")
    assert world.status()["writers"] == ["b"]
    stop_and_verify(world)


def by_hand(world: World) -> None:
    """Move g from a to b as an administrator's own script would, through the library's hypervisor."""
    from storkit.core.inventory import load
    from storkit.hosts.connections import Connections

    hosts = Connections(load(world.inventory))
    uri = hosts.to("b").call("hypervisor:qemu", "receive", {"name": "g", "same_machine": True})
    hosts.to("a").call("hypervisor:qemu", "send", {"name": "g", "uri": uri})
    hosts.to("b").call("hypervisor:qemu", "resume", {"name": "g"})
    hosts.to("b").call("hypervisor:qemu", "resume", {"name": "g"})
    hosts.close()


def test_cleanup_from_the_truth_alone(world: World) -> None:
    """Moved by hand, window open, the coordinator's plans lost: cleanup asks who runs it, and mends the rest."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    world.storkit("migrate", "prepare", "g", "--to", "b")
    by_hand(world)
    for plan in (world.directory / "coordinator/plans").iterdir():
        plan.unlink()
    world.storkit("migrate", "cleanup", "g")
    status = world.status()
    assert status["places"] == {"b": "running"} and status["writers"] == ["b"]
    assert [export["client"] for export in status["exports"]] == ["b"]
    stop_and_verify(world)


def test_guest_that_died_is_cleaned_up(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    (line,) = [line for line in world.processes() if "qemu-system" in line]
    os.kill(int(line.partition(":")[0]), signal.SIGKILL)
    world.storkit("migrate", "cleanup", "g")
    assert world.status()["writers"] == [] and world.leftovers() == []
    assert bootsector.verify(world.disk()).clean


def test_server_that_died_comes_back_with_the_same_rights(world: World) -> None:
    """The guest waits for its disk and goes on; the other host still may not write."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    world.storkit("attach", "g", "--on", "b", "--read-only")
    os.kill(server(world), signal.SIGKILL)
    world.storkit("host", "restore")
    assert can_write(world, "a") and not can_write(world, "b")
    world.storkit("detach", "g", "--on", "b")
    stop_and_verify(world)


def test_silent_guest_is_neither_healthy_nor_free(world: World) -> None:
    """A source that does not answer may still run: nothing starts, moves or takes its disk until it is known."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    (line,) = [line for line in world.processes() if "qemu-system" in line]
    process = int(line.partition(":")[0])
    os.kill(process, signal.SIGSTOP)
    patient = world.environment[timeouts.VARIABLE]
    world.environment[timeouts.VARIABLE] = "1"  # each of the commands waits for it
    try:
        for words in (
            ("migrate", "run", "g", "--to", "b"),
            ("guest", "start", "g", "--on", "b"),
            ("migrate", "cleanup", "g"),
            ("guest", "stop", "g"),
        ):  # fmt: skip
            done = world.storkit(*words, ok=9)
            assert "cannot be asked" in done.stderr and "next:" in done.stderr
        assert world.status()["writers"] == ["a"]
        world.storkit("guest", "stop", "g", "--force")
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
        world.environment[timeouts.VARIABLE] = patient
    assert bootsector.verify(world.disk()).clean
    assert world.leftovers() == []


def test_a_guest_cannot_run_twice(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    assert "already runs on a" in world.storkit("guest", "start", "g", "--on", "b", ok=5).stderr
    world.storkit("guest", "start", "g", "--on", "a")
    assert "is written by a" in world.storkit("attach", "g", "--on", "b", ok=5).stderr
    assert "already runs on a" in world.storkit("migrate", "run", "g", "--to", "a", ok=5).stderr
    stop_and_verify(world)


def test_volume_made_anew_under_the_old_name_is_refused(world: World) -> None:
    """The guest's record knows its disk by UUID."""
    world.guest()
    world.storkit("volume", "delete", "--force", "g")
    world.storkit("volume", "create", "g", "2MiB")
    done = world.storkit("guest", "start", "g", "--on", "a", ok=9)
    assert "is not the disk of guest g any more" in done.stderr


def test_two_commands_at_once(world: World) -> None:
    """Many migrations and stops at one time: each either does all of its work or is refused."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    running = [world.popen("migrate", "run", "g", "--to", "b") for _ in range(5)]
    codes = []
    for process in running:
        _, errors = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert process.returncode in (0, 5), errors
    assert codes.count(0) == 1, codes
    assert world.status()["places"] == {"b": "running"} and world.status()["writers"] == ["b"]
    stop_and_verify(world)


def test_destination_that_cannot_take_it_is_refused_before_anything_changes(world: World) -> None:
    kernel = world.directory / "no-kernel"
    kernel.write_bytes(b"x")
    world.guest()
    world.storkit("guest", "define", "g", "--disk", "g", "--memory", "16MiB", "--kernel", kernel, "--replace")
    kernel.unlink()
    done = world.storkit("guest", "start", "g", "--on", "a", ok=5)
    assert "no-kernel is missing" in done.stderr
    assert world.leftovers() == []


def test_failed_migration_leaves_the_guest_at_its_source(world: World) -> None:
    """The destination cannot start: everything is put back, and the guest never noticed."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    binary = world.directory / "bin"
    binary.mkdir()
    fake = binary / "qemu-system-x86_64"
    fake.write_text("#!/bin/sh\ncase \"$*\" in *-incoming*) echo out of luck >&2; exit 1;; esac\n"
                    "exec /usr/bin/qemu-system-x86_64 \"$@\"\n")  # fmt: skip
    fake.chmod(0o755)
    world.environment["PATH"] = f"{binary}:{os.environ['PATH']}"
    done = world.storkit("--json", "migrate", "run", "g", "--to", "b", ok=None)
    assert done.status == 6 and "out of luck" in done.stderr, done.stderr
    assert done.json["error"]["changed"] is False and "everything was put back" in done.stderr
    status = world.status()
    assert status["places"] == {"a": "running"} and status["writers"] == ["a"]
    assert [export["client"] for export in status["exports"]] == ["a"]
    del world.environment["PATH"]
    stop_and_verify(world)


def test_dry_run_changes_nothing(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    before = sorted(str(path) for path in world.directory.rglob("*"))
    plan: dict[str, Any] = world.storkit("--json", "-n", "migrate", "run", "g", "--to", "b").json
    verbs = [step["verb"] for stage in plan["stages"] for step in stage]
    assert verbs == [
        "export", "attach", "prove", "set_writers", "define", "receive", "send",
        "confirm", "retire", "set_writers", "undefine", "detach", "unexport",
    ]  # fmt: skip
    created = [path for path in sorted(str(path) for path in world.directory.rglob("*")) if path not in before]
    assert [path for path in created if Path(path).is_file() and "/b/" not in path] == []
    stop_and_verify(world)


def begun(plans: Path, before: set[Path]) -> bool:
    """Whether a new plan has started a step."""
    return any(b'"start"' in path.read_bytes() for path in set(plans.glob("*.jsonl")) - before)


def test_interrupted_command_names_its_plan(world: World) -> None:
    """Ctrl-C, or a shutdown's SIGTERM, in the middle: what is said goes on from there."""
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    plans = world.directory / "coordinator/plans"
    for number in (signal.SIGINT, signal.SIGTERM):
        before = set(plans.glob("*.jsonl"))
        process = world.popen("migrate", "run", "g", "--to", "b")
        while process.poll() is None and not begun(plans, before):
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        plan = world.storkit("--json", "plan", "list").json[-1]["id"]
        assert f"storkit plan rollback {plan}" in errors and "Traceback" not in errors
        world.storkit("plan", "rollback", plan)
        assert world.status()["places"] == {"a": "running"} and world.status()["writers"] == ["a"]
    stop_and_verify(world)


def test_description_of_a_running_guest_stays(world: World) -> None:
    world.guest()
    world.storkit("guest", "start", "g", "--on", "a")
    done = world.storkit("guest", "define", "g", "--disk", "g", "--memory", "32MiB", "--replace", ok=5)
    assert "running on a" in done.stderr
    stop_and_verify(world)
