"""An LVM pool's verbs, killed by SIGKILL: the next verb clears away what they left, and finishes what was asked for."""

from __future__ import annotations

import pytest

from tests.lab import Lab
from tests.lab.test_lvm import group, inside

pytestmark = pytest.mark.lab
KINDS = ["thin", pytest.param("thick", marks=pytest.mark.slow)]

RUNNER = """
import fcntl, signal, traceback
from storkit.system.block import blockdevice

def victim(point, settings, verb, volumes):
    "Run one verb and die at its Nth step: `before` a command or an ioctl, or `during` a command, which goes on alone."
    when, _, given = point.partition(":")
    count, number = 0, int(given)

    def counted(call):
        def step(*args, **more):
            nonlocal count
            count += 1
            die = count == number
            if die and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if die and when == "during":
                argv = list(args[0])
                args = (["sh", "-c", f'kill -9 {os.getpid()}; exec "$@"', "sh", *argv], *args[1:])
            return call(*args, **more)
        return step

    tools.run = counted(tools.run)
    class Fcntl:
        ioctl = staticmethod(counted(fcntl.ioctl))
    if when != "during":
        blockdevice.fcntl = Fcntl
    if verb == "clone":
        pool(**settings).clone(volumes[0], volumes[1:])
    elif verb == "resize":
        pool(**settings).resize(volumes, shrink=True)
    else:
        getattr(pool(**settings), verb)(volumes)

def lvs():
    return set(sh("lvs", "--noheadings", "-o", "lv_name", "vg").split()) - {"pool"}

def kill(*what):
    "Whether the verb was killed there; false: it has fewer steps. In a fork, as an interpreter's start takes a second."
    child = os.fork()
    if child == 0:
        try:
            victim(*what)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -9), status
    return status == -9

def walk(attempt, every=1):
    "Cut at every point, or at each second one, until one is not reached; the points."
    walked = []
    for when in ("before", "during"):
        for number in range(1 + every * (when == "during") // 2, 60, every):
            if not attempt(f"{when}:{number}"):
                break
            walked.append(f"{when}:{number}")
    return walked
"""

SETTINGS = {"thin": '{"vg": "vg", "thinpool": "pool"}', "thick": '{"vg": "vg"}'}


def walk(lab: Lab, kind: str, code: str) -> list[str]:
    """Run the code for every point where a verb can be killed; the points."""
    (s,) = lab.hosts("s")
    group(s, 512 << 20, thin="256M" if kind == "thin" else "")
    walked: list[str] = inside(s, f"{RUNNER}settings = {SETTINGS[kind]}\n{code}", timeout=2400, fresh=True)
    print(f"{kind}: killed at {len(walked)} points: {' '.join(walked)}")
    return walked


@pytest.mark.parametrize(
    ("kind", "every"), [("thin", 2), *(pytest.param(kind, 1, marks=pytest.mark.slow) for kind in ("thin", "thick"))]
)
def test_create_is_all_or_none(lab: Lab, kind: str, every: int) -> None:
    walked = walk(
        lab,
        kind,
        f"every = {every}"
        """
mine = pool(**settings)
def attempt(point):
    wanted = [new("a", 8 * MIB), new("b", 8 * MIB)]
    if not kill(point, settings, "create", wanted):
        mine.delete(wanted)
        return False
    assert [volume.name for volume in mine.find()] in ([], ["a", "b"]), point
    other = new("other", 4 * MIB)
    mine.create([other])  # waits for what goes on alone
    mine.delete([other])
    there = [volume.name for volume in mine.find()]
    assert lvs() == set(there), (point, lvs())
    assert "storkit" not in sh("vgs", "-o", "vg_tags", "vg")
    assert all(only(volume.path, b"\\0", 8 * MIB) for volume in mine.create(wanted)), point
    for volume in mine.find():
        write(volume.path, b"x", 8 * MIB)
    mine.delete(wanted)
    assert lvs() == set()
    return True
print(json.dumps(walk(attempt, every)))
""",
    )
    assert len(walked) >= 6 // every


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_clone_is_all_or_none(lab: Lab, kind: str) -> None:
    walked = walk(
        lab,
        kind,
        """
mine = pool(**settings)
(golden,) = mine.create([new("golden", 8 * MIB, made="imported")])
write(golden.path, b"g", 4 * MIB)
(golden,) = mine.relabel([replace(golden, kind="image")])
def attempt(point):
    wanted = [new("a", 8 * MIB), new("b", 16 * MIB)]
    if not kill(point, settings, "clone", [golden, *wanted]):
        mine.delete(wanted)
        return False
    there = [volume.name for volume in mine.find()]
    assert there in (["golden"], ["a", "b", "golden"]), (point, there)
    for volume in mine.clone(golden, wanted):
        assert only(volume.path, b"g", 4 * MIB) and only(volume.path, b"\\0", volume.size - 4 * MIB, 4 * MIB), point
        write(volume.path, b"x", volume.size)
    assert lvs() == {"a", "b", "golden"}
    mine.delete(wanted)
    assert lvs() == {"golden"} and "storkit" not in sh("vgs", "-o", "vg_tags", "vg")
    return True
print(json.dumps(walk(attempt)))
""",
    )
    assert len(walked) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["delete", "resize"])
@pytest.mark.parametrize("kind", KINDS)
def test_delete_and_resize_finish_when_called_again(lab: Lab, kind: str, verb: str) -> None:
    walked = walk(
        lab,
        kind,
        f"verb = {verb!r}"
        """
mine = pool(**settings)
def attempt(point):
    wanted = [new("a", 16 * MIB), new("b", 16 * MIB)]
    made = mine.create(wanted)
    for volume in made:
        write(volume.path, b"y", 16 * MIB)
    asked = wanted if verb == "delete" else [replace(made[0], size=6 * MIB), replace(made[1], size=24 * MIB)]
    killed = kill(point, settings, verb, asked)
    if killed and verb == "delete":
        mine.delete(asked)
    if killed and verb == "resize":
        for volume in mine.find():
            assert only(volume.path, b"y", min(volume.size, 16 * MIB)), point
        small, large = mine.resize(asked, shrink=True)
        assert (small.size, large.size) == (6 * MIB, 24 * MIB)
        assert only(large.path, b"y", 16 * MIB) and only(large.path, b"\\0", 8 * MIB, 16 * MIB), point
        (again,) = mine.resize([replace(small, size=16 * MIB)])
        assert only(again.path, b"y", 6 * MIB) and only(again.path, b"\\0", 10 * MIB, 6 * MIB), point
    mine.delete(wanted)
    assert lvs() == set(), point
    return killed
print(json.dumps(walk(attempt)))
""",
    )
    assert len(walked) >= 3
