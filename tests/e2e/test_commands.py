"""The command line as people use it, wrongly too: what is refused, with which exit status, and that nothing changed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.world import World, each_format

BAD_NAMES = {
    "slash": "a/b",
    "parent": "..",
    "dots": "a..b",
    "nul": "a\\0b",
    "newline": "a\nb",
    "space": "a b",
    "dash": "-a",
    "long": "a" * 64,
    "umlaut": "größe",
    "empty": "",
    "dot": ".a",
    "shell": "$(id)",
}
BAD_SIZES = ["10", "0", "-1", "1.5.G", "9223372036854775808", "8E", "ten", "", "1GG", "0x10", "1e3", "²", "nan", "0.0"]


@pytest.fixture
def plain(make_world: Callable[..., World]) -> World:
    return make_world("raw")


def tree(world: World) -> dict[str, str]:
    """Every file that there is, with what is in it: a refused command makes none, changes none, and is not counted.

    It may have found out where a volume is.
    """
    files = {
        str(path.relative_to(world.directory)): path
        for path in world.directory.rglob("*")
        if path.is_file() and path != world.directory / "coordinator/hints.json"
    }
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_bad_names(plain: World, name: str) -> None:
    plain.storkit("volume", "create", "good", "1MiB")
    before = tree(plain)
    for words in (
        ("volume", "create", "--", name, "1MiB"),
        ("volume", "clone", "--", "good", name),
        ("volume", "snapshot", "--", "good", name),
        ("volume", "delete", "--", name),
        ("volume", "show", "--", name),
        ("guest", "define", "--", name),
        ("guest", "start", "--", name),
        ("guest", "clone", "--", name, "other"),
    ):
        # POOL/NAME is the name of a volume that exists.
        of_a_pool = name == BAD_NAMES["slash"] and words[1] in ("delete", "show")
        done = plain.storkit(*words, ok=4 if of_a_pool else 2)
        assert "next:" in done.stderr and "Traceback" not in done.stderr, words
    assert tree(plain) == before


@pytest.mark.parametrize("size", BAD_SIZES)
def test_bad_sizes(plain: World, size: str) -> None:
    plain.storkit("volume", "create", "good", "1MiB")
    before = tree(plain)
    for words in (
        ("volume", "create", "--", "v", size),
        ("volume", "resize", "--", "good", size),
        ("guest", "define", "g", f"--memory={size}"),
        ("volume", "clone", "good", "v", f"--size={size}"),
        ("volume", "import", "/dev/null", "v", f"--max-size={size}"),
    ):
        done = plain.storkit(*words, ok=2)
        assert "Traceback" not in done.stderr
    assert tree(plain) == before


def test_all_problems_at_once(plain: World) -> None:
    done = plain.storkit("--json", "volume", "create", "a/b", "0", "--pool", "none", ok=2)
    problems = done.json["error"]["problems"]
    assert [problem["kind"] for problem in problems] == ["usage", "not-found", "usage"]


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("volume", "create", "v", "1MiB"), 5, "exists already"),
        (("volume", "show", "none"), 4, "there is no volume none"),
        (("volume", "delete", "none", "v"), 4, "there is no volume none"),
        (("volume", "clone", "none", "x"), 4, "there is no volume none"),
        (("volume", "clone", "v", "v"), 5, "exists already"),
        (("volume", "clone", "v", "x", "x"), 2, "named twice"),
        (("volume", "clone", "v", "x", "--size", "512KiB"), 2, "cannot be smaller"),
        (("volume", "resize", "v", "512KiB"), 2, "would be cut off"),
        (("volume", "resize", "v", "512KiB", "--shrink"), 2, "storkit volume resize v 512KiB --shrink --shrink"),
        (("volume", "create", "x", "1MiB", "--pool", "none"), 4, "there is no pool 'none'"),
        (("volume", "import", "/none", "x"), 4, "there is no file /none"),
        (("volume", "import", "/dev/null", "x"), 2, "/dev/null"),
        (("volume", "export", "v", "/none/x"), 2, "/none"),
        (("volume", "export", "v", "/dev/null"), 5, "/dev/null exists already"),
        (("volume", "export", "v", "/none/x", "--format", "raw", "--compress"), 2, "raw images are not compressed"),
        (("-n", "volume", "export", "v", "/none/x"), 2, "/none"),
        (("attach", "v", "--on", "nowhere"), 4, "there is no host 'nowhere'"),
        (("attach", "v", "--on", "ssh://"), 2, "is not a host URL"),
        (("attach", "v", "--on", "local:x"), 2, "absolute"),
        (("guest", "start", "none"), 4, "none"),
        (("guest", "define", "x", "--disk", "none"), 4, "there is no volume none"),
        (("migrate", "run", "g", "--to", "b"), 5, "does not run"),
        (("migrate", "finish", "g"), 4, "runs on no host"),
        (("migrate", "abort", "g"), 4, "runs on no host"),
        (("plan", "resume", "none"), 4, "there is no plan"),
        (("plan", "rollback", "../x"), 4, "there is no plan"),
        (("verify", "v"), 4, "is attached nowhere"),
        (("fence", "a"), 5, "every pool is on a itself"),
        (("frobnicate",), 2, "invalid choice"),
        (("volume", "create", "x"), 2, "required: SIZE"),
    ],
)
def test_refusals(plain: World, words: tuple[str, ...], status: int, text: str) -> None:
    plain.storkit("volume", "create", "v", "1MiB")
    plain.storkit("guest", "define", "g", "--disk", "v", "--memory", "16MiB")
    plain.storkit("status")  # every host has been told the inventory, and keeps it
    before = tree(plain)
    done = plain.storkit(*words, ok=status)
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(plain) == before


@each_format
def test_shrinking_wants_to_be_told_twice(world: World) -> None:
    world.storkit("volume", "create", "v", "4MiB")
    world.storkit("volume", "resize", "v", "2MiB", "--shrink", "--shrink")
    assert world.storkit("--json", "volume", "show", "v").json["size"] == 2 << 20
    world.storkit("volume", "resize", "v", "8MiB")
    assert world.storkit("--json", "volume", "show", "v").json["size"] == 8 << 20


def test_golden_image_is_kept_from_writers_and_deletion(world: World) -> None:
    image = world.directory / "image"
    image.write_bytes(b"x" * (1 << 20))
    world.storkit("volume", "import", image, "gold", "--golden")
    world.storkit("volume", "clone", "gold", "one")
    made = world.storkit("--json", "volume", "show", "one").json["made"]
    if made == "overlay":
        assert "one" in world.storkit("volume", "delete", "gold", ok=5).stderr
    world.storkit("volume", "resize", "gold", "2MiB", ok=5)
    assert "golden image" in world.storkit("guest", "define", "g", "--disk", "gold", ok=5).stderr
    world.storkit("attach", "gold", "--on", "b")
    assert world.storkit("--json", "volume", "show", "gold").json["writers"] == []
    world.storkit("volume", "clone", "gold", "two")
    world.storkit("detach", "gold", "--on", "b")
    world.storkit("volume", "delete", "one", "two", "gold")
    assert world.leftovers() == []


def test_damaged_sidecar_is_named_and_kept(plain: World) -> None:
    plain.storkit("volume", "create", "v", "1MiB")
    plain.storkit("volume", "create", "w", "1MiB")
    sidecar = plain.directory / "a/volumes/v.json"
    sidecar.write_text("{")
    for words, status in ((("volume", "show", "v"), 9), (("volume", "delete", "v"), 9), (("volume", "list"), 0)):
        assert str(sidecar) in plain.storkit(*words, ok=status).stderr
    plain.storkit("volume", "show", "w")
    assert sidecar.read_text() == "{"


def test_damaged_journal_is_named_and_kept(plain: World) -> None:
    plain.storkit("volume", "create", "v", "1MiB")
    (journal,) = (plain.directory / "coordinator/plans").glob("*.jsonl")
    journal.write_text("{}\n")
    assert str(journal) in plain.storkit("plan", "resume", journal.stem, ok=9).stderr
    assert "damaged" in plain.storkit("plan", "list").stdout
    assert journal.read_text() == "{}\n"


def test_damaged_inventory_and_guest_are_named(plain: World) -> None:
    plain.storkit("guest", "define", "g")
    guest = plain.directory / "guests/g.toml"
    guest.write_text('name = "g"\nuuid = 5\ncolour = "red"\n')
    done = plain.storkit("guest", "show", "g", ok=2)
    assert "uuid" in done.stderr and "colour" in done.stderr and str(guest) in done.stderr
    plain.inventory.write_text("[hosts.a]\nurl = 5\n[x]\n")
    done = plain.storkit("volume", "list", ok=2)
    assert "unknown section 'x'" in done.stderr and "hosts.a.url" in done.stderr


def test_full_disk_leaves_no_half_volume(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "small", str(small)], check=True)
    try:
        world = World(tmp_path, inventory=f'[hosts.a]\nurl = "local:a"\n[hosts.b]\nurl = "local:b"\n'
                      f'[pools.default]\nhost = "a"\npath = "{small}"\n')  # fmt: skip
        image = tmp_path / "image"
        image.write_bytes(os.urandom(8 << 20))
        done = world.storkit("volume", "import", image, "v", ok=5)
        assert "space" in done.stderr or "room" in done.stderr
        assert world.storkit("--json", "volume", "list").json == []
        assert [path.name for path in small.iterdir() if not path.name.startswith(".")] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_two_commands_make_one_name(plain: World) -> None:
    running = [plain.popen("volume", "create", "v", f"{n + 1}MiB") for n in range(8)]
    codes = sorted((process.communicate(), process.returncode)[1] for process in running)
    assert codes == [0] + [5] * 7
    assert len(plain.storkit("--json", "volume", "list").json) == 1


def test_streams_and_files(plain: World) -> None:
    """Import from a pipe, export, and the same bytes come back."""
    data = os.urandom(1 << 20) + bytes(1 << 20)
    done = subprocess.run(
        [*plain.argv, *plain.words("volume", "import", "-", "v")],
        input=data, capture_output=True, env=plain.environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = plain.directory / "out.qcow2"
    plain.storkit("volume", "export", "v", out, "--format", "qcow2")
    plain.storkit("volume", "import", out, "w")
    assert Path(plain.storkit("--json", "volume", "show", "w").json["path"]).read_bytes() == data
    plain.storkit("volume", "export", "v", out, ok=5)


@each_format
def test_guest_clone_takes_its_disks_along(world: World) -> None:
    world.guest("web")
    world.storkit("guest", "clone", "web", "web2", "--set", "memory=24MiB")
    volumes = {volume["name"] for volume in world.storkit("--json", "volume", "list").json}
    assert volumes == {"web", "web2"}
    one, two = (world.storkit("--json", "guest", "show", name).json for name in ("web", "web2"))
    assert one["uuid"] != two["uuid"] and one["disks"][0]["uuid"] != two["disks"][0]["uuid"]
    assert two["memory"] == 24 << 20 and two["disks"][0]["volume"] == "web2"


def test_many_guests_are_cloned_in_one_plan(plain: World) -> None:
    plain.guest("web")
    plans = len(plain.storkit("--json", "plan", "list").json)
    made = plain.storkit("--json", "guest", "clone", "web", "--count", "3", "--name", "w%02d").json
    assert [guest["name"] for guest in made] == ["w01", "w02", "w03"]
    assert len({guest["uuid"] for guest in made}) == len({guest["disks"][0]["uuid"] for guest in made}) == 3
    # one makes all of their disks, one keeps all of the guests
    assert len(plain.storkit("--json", "plan", "list").json) == plans + 2
    shown = plain.storkit("guest", "clone", "web", "x").stdout
    assert '-name = "web"' in shown and 'volume = "x"' in shown and "hypervisor" not in shown
    refused = plain.storkit("guest", "clone", "web", "y", "w02", "--set", "disks.0.volume=z", ok=5)
    assert "guest w02 exists already" in refused.stderr
    refused = plain.storkit("guest", "clone", "web", "y", "z", "--set", "disks.0.volume=x", ok=None)
    assert "guests y and z would both write x" in refused.stderr
    for words in (("--count", "2"), ("--count", "2", "--name", "x"), ("x", "--count", "2", "--name", "x%d"), ()):
        assert plain.storkit("guest", "clone", "web", *words, ok=2).status == 2


def test_output_for_scripts_is_json_and_nothing_else(plain: World) -> None:
    plain.guest()
    for words in (
        ("volume", "list"), ("volume", "show", "g"), ("guest", "list"), ("guest", "show", "g"), ("pool", "list"),
        ("host", "list"), ("host", "check"), ("status",), ("plan", "list"), ("migrate", "status"),
        ("guest", "render", "g", "--for", "libvirt"), ("-n", "volume", "delete", "--force", "g"),
    ):  # fmt: skip
        done = plain.storkit("--json", *words)
        json.loads(done.stdout)
        assert done.stderr == "", words


def test_reader_that_goes_away(plain: World) -> None:
    plain.storkit("volume", "create", "v", "1MiB")
    command = " ".join([*plain.argv, *plain.words("volume", "list")])
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, env=plain.environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_at_boot_a_host_restores_what_it_was_last_told(world: World) -> None:
    """Without an inventory and without a coordinator: what the unit of the boot calls."""
    world.storkit("volume", "create", "v", "1MiB")
    world.storkit("attach", "v", "--on", "b")
    server = [line for line in world.processes() if "qemu-storage-daemon" in line]
    for line in server:
        os.kill(int(line.partition(":")[0]), signal.SIGKILL)
    link = world.directory / "b/dev/v"
    target = link.readlink()
    link.unlink()
    for host, served in (("b", 0), ("a", 1), ("b", 0), ("c", 0)):
        boot = [*world.argv, "--json", "--state", str(world.directory / host), "host", "restore", "--boot"]
        done = subprocess.run(boot, capture_output=True, text=True, env=world.environment, check=True)
        assert len(json.loads(done.stdout)) == served, host
    assert link.readlink() == target
    (export,) = world.storkit("--json", "volume", "show", "v").json["exports"]
    assert export["live"] and export["writable"] and export["client"] == "b"
    world.storkit("host", "restore", "--boot", "a", ok=2)


def test_a_long_list_says_what_volumes_take_and_whose_they_are(make_world: Callable[..., World]) -> None:
    world = make_world("qcow2")
    world.storkit("volume", "create", "golden", "8MiB")
    world.storkit("volume", "clone", "golden", "web")
    world.storkit("guest", "define", "shop", "--disk", "web")
    found = {each["name"]: each for each in world.storkit("--json", "volume", "list", "--long").json}
    assert (found["web"]["guests"], found["golden"]["guests"]) == (["shop"], [])
    assert 0 < found["web"]["used"] < 8 << 20
    assert "used" not in world.storkit("--json", "volume", "list").json[0]
    heads, *lines = world.storkit("volume", "list", "--long").stdout.splitlines()
    assert heads.split()[-3:] == ["USED", "ORIGIN", "GUESTS"]
    (web,) = [line for line in lines if line.startswith("web ")]
    assert web.split()[-2:] == ["golden", "shop"] and lines[-1].startswith("pool default: ")
