"""Hosts behind a real sshd: agents, TLS between machines, lost connections, killed agents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storkit.hosts.remote.ssh import ssh_argv
from tests.e2e.sshd import two_machines
from tests.e2e.world import World
from tests.guestkit import bootsector

pytestmark = pytest.mark.e2e


@pytest.fixture
def machines() -> Iterator[World]:
    # Not tmp_path: sshd's files and Unix sockets want a short path.
    with tempfile.TemporaryDirectory(prefix="sk-") as scratch, two_machines(Path(scratch)) as world:
        yield world


def test_check(machines: World) -> None:
    found = machines.storkit("--json", "host", "check").json
    assert [host["host"] for host in found] == ["a", "b"]
    assert all(host["problems"] == [] for host in found)


def test_migration_between_machines(machines: World) -> None:
    """NBD with TLS, the migration stream with TLS, each with its own key; nothing is left of them at the end."""
    machines.guest()
    machines.storkit("guest", "start", "g", "--on", "a")
    for destination in ("b", "a", "b"):
        moved = machines.storkit("--json", "migrate", "run", "g", "--to", destination).json
        assert sorted(moved["proof"][0]["hosts"]) == ["a", "b"]
        assert machines.status()["places"] == {destination: "running"}
        assert machines.status()["writers"] == [destination]
    endpoint = machines.status()["exports"][0]["endpoint"]
    assert "127.0.0.1" in endpoint
    machines.storkit("guest", "stop", "g", "--force")
    report = bootsector.verify(machines.disk())
    assert report.clean, report
    assert machines.leftovers() == []


def test_secrets_stay_out_of_journals_and_process_lists(machines: World) -> None:
    machines.guest()
    machines.storkit("guest", "start", "g", "--on", "b")
    keys = [path.read_text().strip().partition(":")[2] for path in machines.directory.rglob("keys.psk")]
    assert keys and all(len(key) >= 32 for key in keys)
    for path in machines.directory.rglob("keys.psk"):
        assert path.stat().st_mode & 0o077 == 0
    said = "".join(path.read_text() for path in (machines.directory / "coordinator/plans").iterdir())
    said += "\n".join(machines.processes())
    said += machines.storkit("--json", "status").stdout + machines.storkit("--json", "volume", "show", "g").stdout
    assert not any(key in said for key in keys)
    machines.storkit("guest", "stop", "g", "--force")


def test_unreachable_host_is_unknown(machines: World) -> None:
    """A volume's home that is silent: nothing is planned, and the error names the host and what ssh said."""
    machines.guest()
    text = machines.inventory.read_text()
    machines.inventory.write_text(text.replace("@127.0.0.1:", "@127.0.0.3:"))
    done = machines.storkit("guest", "start", "g", "--on", "b", ok=7)
    assert "host a cannot be reached" in done.stderr and "127.0.0.3" in done.stderr
    listed = machines.storkit("volume", "list")
    assert "what is there is unknown" in listed.stderr
    checked = machines.storkit("--json", "host", "check", ok=7).json
    assert checked[0]["error"]["kind"] == "host-unreachable"


@pytest.mark.parametrize("count", [2, 5, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 3, 4))])
def test_agent_killed(machines: World, count: int) -> None:
    """The destination's agent dies at its Nth request: the plan is left, and resume or rollback ends it."""
    machines.guest()
    machines.storkit("guest", "start", "g", "--on", "a")
    authorized = machines.directory / "authorized"
    normal = authorized.read_text()
    authorized.write_text(normal.replace("-m storkit agent", f"-m tests.e2e.killed_agent {count} 127.0.0.2"))
    done = machines.storkit("migrate", "run", "g", "--to", "b", ok=None)
    authorized.write_text(normal)
    assert done.status in (7, 10), done.stderr
    if done.status == 10:
        plan = machines.storkit("--json", "plan", "list").json[-1]["id"]
        assert plan in done.stderr
        mend = "resume" if count % 2 else "rollback"
        machines.storkit("plan", mend, plan)
    status = machines.status()
    assert len(status["writers"]) == 1 and status["places"] == {status["writers"][0]: "running"}
    machines.storkit("guest", "stop", "g", "--force")
    assert bootsector.verify(machines.disk()).clean
    assert machines.leftovers() == []


def test_silent_server_is_not_a_silent_host(machines: World) -> None:
    """The data port is closed to b, whose agent answers: what was begun is put back, and nothing is left to do."""
    machines.storkit("volume", "create", "v", "1MiB")
    machines.guest()
    machines.storkit("guest", "start", "g", "--on", "a")
    authorized = machines.directory / "authorized"
    normal = authorized.read_text()
    authorized.write_text(normal.replace("-m storkit agent", "-m tests.e2e.unserved_agent 127.0.0.2"))
    for words in (("attach", "v", "--on", "b"), ("migrate", "run", "g", "--to", "b")):
        done = machines.storkit(*words, ok=11)
        assert "plan" not in done.stderr, done.stderr
    plans = machines.storkit("--json", "plan", "list").json
    assert [plan["status"] for plan in plans[-2:]] == ["failed and rolled back"] * 2
    assert machines.storkit("--json", "volume", "show", "v").json["exports"] == []
    assert machines.status()["writers"] == ["a"] and machines.status()["places"] == {"a": "running"}
    machines.storkit("guest", "stop", "g", "--force")


def test_agent_takes_verbs_and_no_commands(machines: World) -> None:
    """What the pinned key can be used for: every wrong request is refused by name."""
    setup = {"host": "a", "state": str(machines.directory / "a"), "pools": {"default": {"type": "directory"}}}
    requests: list[dict[str, Any]] = [
        {"do": "run", "argv": ["id"]},
        {"do": "call", "target": "pool:default", "verb": "_files", "args": {}},
        {"do": "call", "target": "pool:default", "verb": "__init__", "args": {}},
        {"do": "call", "target": "os:default", "verb": "system", "args": {}},
        {"do": "call", "target": "images", "verb": "os", "args": {}},
        {"do": "call", "target": "pool:default", "verb": "find", "args": {"names": "x", "more": 1}},
        {"do": "call", "target": "pool:default", "verb": "delete", "args": {"volumes": [{"name": "../x"}]}},
    ]
    port = machines.inventory.read_text().partition("127.0.0.1:")[2].partition('"')[0]
    talk = "\n".join(
        [
            json.dumps({"hello": 1, "version": "0", "setup": setup}),
            *(json.dumps({"id": number, **request}) for number, request in enumerate(requests)),
        ]
    )
    argv = ssh_argv(f"ssh://{os.environ.get('USER') or 'root'}@127.0.0.1:{port}")
    argv[0] = str(machines.directory / "bin/ssh")
    done = subprocess.run(argv, input=talk + "\n", capture_output=True, text=True, timeout=60, check=False)
    answers = {line["id"]: line for line in map(json.loads, done.stdout.splitlines()) if "id" in line}
    assert len(answers) == len(requests), done.stderr
    for answer in answers.values():
        errors = answer["error"].get("problems", [answer["error"]])
        assert all(error["kind"] in ("usage", "unsupported") for error in errors), answer


def test_coordinator_killed_lets_go_of_its_locks(machines: World) -> None:
    """Its agents see the connection end; the next command is told of the plan, not of a lock."""
    machines.guest()
    machines.storkit("guest", "start", "g", "--on", "a")
    process = machines.popen("migrate", "run", "g", "--to", "b")
    plans = machines.directory / "coordinator/plans"
    before = len(list(plans.iterdir()))
    while len(list(plans.iterdir())) == before and process.poll() is None:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    plan = machines.storkit("--json", "plan", "list").json[-1]
    if plan["status"] != "completed":
        # The agents may still be finishing the step that was under way.
        for _ in range(50):
            done = machines.storkit("plan", "rollback", plan["id"], ok=None)
            if "is locked by" not in done.stderr:
                break
        assert done.status == 0, done.stderr
    status = machines.status()
    assert len(status["writers"]) == 1 and not status["window"]
    machines.storkit("guest", "stop", "g", "--force")
    assert machines.leftovers() == []
