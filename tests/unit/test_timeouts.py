"""One factor makes every time longer that storkit waits for an answer."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import storkit
from storkit.core.errors import UsageError
from storkit.system import timeouts

PACKAGE = Path(storkit.__file__).parent
SAID = {
    "hypervisors/_libvirt/migration.py: LONGEST": "ends no wait: Limits.stall does",
    "hypervisors/_qemu/host.py: PROBE_CPU": "processor time, which no clock changes",
    "hypervisors/_door.py: MOST_WAITING": "connections",
    "hypervisors/_xl/channel.py: HANDSHAKE_TIMEOUT": "the program imports nothing; the other end answers at once",
    "hypervisors/_xl/incoming.py: LONGEST": "ends no wait: the source's stall_timeout does",
    "hypervisors/_xl/processes.py: wait": "its callers' are scaled",
    "hypervisors/xl.py: stall_timeout": "a person says it",
    "hypervisors/xl.py: timeout": "a person says it",
    "tech/files/trees.py: _LONG": "copies of whole trees",
    "system/block/scsi.py: _LONGEST": "bytes",
    "tech/images/unpack.py: timeout": "copies of whole images",
    "tech/iscsi/sessiondisk.py: COMMAND_TIMEOUT": "the kernel's, which a disk keeps for its life",
    "tech/nbd/arguments.py: FOREVER": "ends no wait",
    "tech/nfs/attach.py: _LOOK": "looks, does not wait",
    "tech/iscsi/initiator.py: _LOOK": "looks, does not wait",
    "cli/commands/guests.py: timeout": "a person says it",
    "cli/commands/fleets.py: timeout": "a person says it",
    "plans/intent/fleets/acts.py: timeout": "a person says it",
    "core/contracts/hypervisors.py: timeout": "a person says it",
    "core/backend.py: timeout": "a person says it",
    "hypervisors/_guestagent.py: timeout": "a person says it",
    "plans/intent/running/executing.py: timeout": "a person says it",
    "plans/intent/golden/building.py: timeout": "a person says it",
    "plans/intent/guests.py: timeout": "a person says it",
    "plans/intent/moving/draining.py: timeout": "a person says it",
    "cli/commands/hosts.py: timeout": "a person says it",
    "hypervisors/qemu.py: timeout": "a person says it",
    "hypervisors/uml.py: timeout": "a person says it",
    "hypervisors/libvirt.py: timeout": "a person says it",
    "hypervisors/_qemu/settings.py: stall_timeout": "a person says it",
    "hypervisors/libvirt.py: stall_timeout": "a person says it",
    "tech/iscsi/initiator.py: login_timeout": "a person says it",
    "tech/iscsi/initiator.py: replacement_timeout": "a person says it",
    "tech/iscsi/names.py: login_timeout": "a person says it",
    "tech/iscsi/names.py: replacement_timeout": "a person says it",
    "system/locks.py: wait": "0 asks once",
    "tech/nbd/server.py: wait": "one look of a loop with a deadline",
    "tech/files/content/refilling.py: deadline": "0 asks once",
}
"""Times that the factor leaves alone, and why."""
WORDS = ("timeout", "deadline", "wait", "_long", "forever", "recovery", "drain", "appears", "probe", "_busy")


def _literal(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def _waits(path: Path) -> set[str]:
    """Names of times that are written as plain numbers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names.append((node.targets[0].id, node.value))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append((node.target.id, node.value))
        elif isinstance(node, ast.Call):
            names += [(keyword.arg or "", keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            usual = [*given.posonlyargs, *given.args][len(given.posonlyargs) + len(given.args) - len(given.defaults) :]
            pairs = zip([*usual, *given.kwonlyargs], [*given.defaults, *given.kw_defaults], strict=True)
            names += [(each.arg, value) for each, value in pairs]
        found |= {
            f"{path.relative_to(PACKAGE)}: {name}"
            for name, value in names
            if _literal(value) and any(word in name.lower() for word in WORDS)
        }
    return found


def test_every_wait_is_scaled() -> None:
    found = set().union(*(_waits(path) for path in PACKAGE.rglob("*.py")))
    assert sorted(found - set(SAID)) == [], "pass these through storkit.system.timeouts.scaled"


@pytest.mark.parametrize(("text", "seconds"), [("", 2.0), ("1", 2.0), ("5", 10.0), ("0.5", 1.0)])
def test_the_factor(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv(timeouts.VARIABLE, text)
    assert timeouts.scaled(2.0) == seconds


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "inf", "1e9", "5s"])
def test_what_is_no_factor(text: str) -> None:
    with pytest.raises(UsageError, match="STORKIT_TIMEOUT_FACTOR=") as refused:
        timeouts.factor(text)
    assert refused.value.hint == "unset STORKIT_TIMEOUT_FACTOR"


@pytest.mark.parametrize("words", [["volume", "list"], ["status"], ["attach", "v", "--on", "local"]])
def test_a_command_refuses_what_is_no_factor(tmp_path: Path, words: list[str]) -> None:
    environment = {**os.environ, timeouts.VARIABLE: "five", "XDG_CONFIG_HOME": str(tmp_path)}
    argv = [sys.executable, "-m", "storkit", "--state", str(tmp_path / "state"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=PACKAGE.parent)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "STORKIT_TIMEOUT_FACTOR=five: not a number" in done.stderr
