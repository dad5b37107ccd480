"""The home host's half of the transports iscsi and nvme, killed between any two steps."""

from __future__ import annotations

import pytest

from tests.lab import Lab
from tests.lab.killing import KILLED
from tests.lab.target import ISCSI, NVME, Home

pytestmark = pytest.mark.lab

KEPT_BY_ISCSI = """
STATE = "/var/lib/storkit/iscsi"
def kept():
    saved = json.loads((savefile.directory() / "saveconfig.json").read_text())
    names = [p.name for p in lio.CORE.glob("iblock_*")] + [p.name for p in lio.FABRIC.glob("iqn*")]
    return [*names, *saved["targets"], *saved["storage_objects"]]
"""
KEPT_BY_NVME = """
STATE = "/var/lib/storkit/nvme"
def kept():
    return [str(p) for place in (target.SUBSYSTEMS, target.HOSTS, target.PORTS) for p in place.iterdir()]
"""
TRANSPORTS = {"iscsi": (ISCSI, KEPT_BY_ISCSI), "nvme": (NVME, KEPT_BY_NVME)}
WALK = """
PLACES = ("/sys/kernel/config", STATE, "saveconfig", "/run/storkit")
def nothing_left():
    import subprocess
    nodes = [line for line in subprocess.check_output(["dmsetup", "ls"], text=True).splitlines() if "storkit" in line]
    grants = [p.name for p in Path(STATE).glob("*.json*")]
    left = (kept(), nodes, grants)
    assert left == ([], [], []), left
both, one = clients("a", "s"), [volume(0), volume(1)]
def started():
    home.export(one, both)
    home.set_writers([volume(0)], ["a"])
    home.attach_here(home.offers([volume(0)], "s"))
READ = {"v0@a": "r", "v0@s": "r", "v1@a": "r", "v1@s": "r"}
VERBS = {
    "export": (lambda: None, lambda: home.export(one, both), READ),
    "set_writers": (started, lambda: home.set_writers(one, ["s"]), {**READ, "v0@s": "w", "v1@s": "w"}),
    "unexport": (started, lambda: home.unexport(one, ["a"]), {"v0@s": "r", "v1@s": "r"}),
    "fence": (started, lambda: home.fence("a"), {"v0@s": "r", "v1@s": "r"}),
}
before, verb, after = VERBS[WHICH]
at = 0
home.export(one, both)
home.unexport(one, ["a", "s"])
while True:
    home.unfence("a")
    before()
    if not killed(verb, at, PLACES):
        break
    was = rights()
    assert (was.get("v0@a"), was.get("v0@s")) != ("w", "w"), (at, was)
    if at % 2:
        verb()
        assert rights() == after, (at, rights())
    home.detach_here(one)
    home.unexport(one, ["a", "s"])
    nothing_left()
    at += STEP
print(at)
"""


@pytest.mark.parametrize(
    ("transport", "verb"),
    [
        pytest.param(transport, verb, marks=[] if (transport, verb) == ("iscsi", "set_writers") else pytest.mark.slow)
        for transport in TRANSPORTS
        for verb in ("export", "set_writers", "unexport", "fence")
    ],
)
def test_a_verb_that_was_killed_is_finished_by_the_next_and_undone_by_the_other(
    lab: Lab, transport: str, verb: str
) -> None:
    imports, kept = TRANSPORTS[transport]
    home = Home(lab.host("s"), 4, transport=imports)
    said = home.python(KILLED + f"WHICH, STEP = {verb!r}, 5\n" + kept + WALK, timeout=900, fresh=True)
    assert int(said) > 10
