"""A hook that is killed between any two of its steps: nobody else gets a right by it, and the same hook mends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest

from storkit.core.errors import StorkitError
from tests.e2e.hooked import DISK, GUEST, INVENTORY, Hooked
from tests.e2e.world import ROOT, World

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS = {"start": 2, "wake": 3, "leave": 3, "hold": 4}
"""enter, attach · enter, attach, woken · may_leave, detach, leave · may_leave, hold, detach, leave"""


@pytest.fixture
def hooked(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> Hooked:
    made = Hooked(make_world(inventory=INVENTORY), monkeypatch)
    made.world.storkit("volume", "create", "v", "1MiB")
    return made


def run(hooked: Hooked, action: str, point: str = "") -> subprocess.CompletedProcess[str]:
    content = hooked.content("h1")
    words = [point, "h1", content.state, content.managers["a"].identity, action]
    return subprocess.run(
        [sys.executable, "-m", "tests.e2e.killed_hook", *words],
        capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False,
    )  # fmt: skip


def begin(hooked: Hooked, action: str) -> None:
    if action != "start":
        hooked.enter("h1")
    if action == "wake":
        with hooked.hooks("h1") as hooks:
            hooks.hold(DISK, GUEST, "/var/g.save")


@pytest.mark.parametrize("action", STEPS)
def test_the_steps_are_counted(hooked: Hooked, action: str) -> None:
    begin(hooked, action)
    done = run(hooked, action)
    assert (done.returncode, done.stdout) == (0, f"{STEPS[action]}\n"), done.stderr


POINTS = [
    (action, f"{when}:{number}")
    for action, most in STEPS.items()
    for number in range(1, most + 1)
    for when in ("before", "after")
]


@pytest.mark.parametrize(("action", "point"), POINTS, ids=lambda each: str(each))
def test_killed_and_mended(hooked: Hooked, action: str, point: str) -> None:
    begin(hooked, action)
    done = run(hooked, action, point)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert hooked.rights() in ({}, {"h1": True})
    if hooked.rights() or hooked.hold():
        with pytest.raises(StorkitError):
            hooked.enter("h2")
        assert hooked.rights().keys() <= {"h1"}
    if (action, point) == ("wake", "after:3"):
        hooked.leave("h1")  # it was done: to do it again is refused, since the guest has woken up
    elif action in ("start", "wake"):
        again = run(hooked, action)
        assert again.returncode == 0, again.stderr
        assert hooked.rights() == {"h1": True} and hooked.attached("h1") and not hooked.hold()
        hooked.leave("h1")
    else:
        again = run(hooked, action)
        # What has left already is not the only writer any more; then it is held, and nothing is left to do.
        assert again.returncode == 0 or (hooked.hold() or action == "leave"), again.stderr
        assert hooked.hold() is (action == "hold")
    assert hooked.rights() == {} and not hooked.attached("h1")


def act(hooked: Hooked, action: str) -> None:
    """What a hook's process does (killed_hook.py), in this one."""
    if action == "hold":
        with hooked.hooks("h1") as hooks:
            hooks.hold(DISK, GUEST, "/var/g.save")
    elif action == "leave":
        hooked.leave("h1")
    else:
        hooked.enter("h1", action)


@pytest.mark.parametrize("action", STEPS)
def test_the_managers_agent_is_killed_and_the_same_hook_mends_it(
    hooked: Hooked, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = hooked.directory / "killed"
    number, killed = 0, True
    while killed:
        number += 1
        for when in ("before", "after"):
            begin(hooked, action)
            mark.unlink(missing_ok=True)
            with monkeypatch.context() as patch:
                patch.setenv("HOOKED_AGENT", "tests.e2e.killed_manager")
                patch.setenv("KILLED_AGENT", f"{when}:{number}")
                patch.setenv("KILLED_MARK", str(mark))
                with suppress(StorkitError):
                    act(hooked, action)
            killed = mark.exists()
            assert hooked.rights().keys() <= {"h1"}, (when, number)
            if any(hooked.rights().values()) or hooked.hold():
                with pytest.raises(StorkitError):
                    hooked.enter("h2")
                assert hooked.rights().keys() <= {"h1"}, (when, number)
            # What was done already, and cannot be done again, is refused.
            with suppress(StorkitError):
                act(hooked, action)
            assert hooked.hold() is (action == "hold"), (when, number)
            assert (hooked.rights() == {"h1": True}) is (action in ("start", "wake")), (when, number)
            assert hooked.attached("h1") is (action in ("start", "wake")), (when, number)
            if action == "hold":
                hooked.enter("h1", "wake")
            if action != "leave":
                hooked.leave("h1")
            assert hooked.rights() == {} and not hooked.hold() and not hooked.attached("h1")
    assert number > 2
    print(f"{number - 1} verbs")
