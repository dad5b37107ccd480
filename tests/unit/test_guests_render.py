"""Configurations rendered from guest records: against golden files, and against the programs that will read them."""

from __future__ import annotations

import tomllib
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storkit.core import codec
from storkit.core.errors import NotFound, Problems, StorkitError, Unsupported, UsageError
from storkit.core.guest import Boot, Disk, Guest, Nic
from storkit.core.model import DiskSource
from storkit.guests import files, parse_xl
from storkit.guests.parse import parse
from storkit.guests.place import Place
from storkit.guests.render import FILES, read_args, render, targets
from storkit.system.run import run, which

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "guests"
CASES = sorted(GOLDEN.glob("*.toml"))
UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"


def case(path: Path) -> tuple[Guest, list[DiskSource], Place, list[str]]:
    """A golden case: the guest, its disk sources, the place it runs at, what it is rendered for."""
    data: dict[str, Any] = tomllib.loads(path.read_text())
    problems: list[StorkitError] = []
    guest = files.from_data(data["guest"], str(path), problems)
    assert guest is not None, problems
    sources = codec.load(list[DiskSource], data["sources"], str(path))
    return guest, sources, codec.load(Place, data.get("place", {}), str(path)), data["render"]


RENDERED = [(path, kind) for path in CASES for kind in case(path)[3]]
ids = [f"{path.stem}-{kind}" for path, kind in RENDERED]


def golden(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.stem}.{kind}.{FILES[kind].rpartition('.')[2]}")


@pytest.mark.parametrize(("path", "kind"), RENDERED, ids=ids)
def test_golden(path: Path, kind: str, regenerate: bool) -> None:
    guest, sources, place, _ = case(path)
    text = render(guest, sources, kind, place)
    if regenerate:
        golden(path, kind).write_text(text)
    assert text == golden(path, kind).read_text(), "if this is meant: pytest --regenerate, and read the diff"


def test_no_golden_file_is_left_over() -> None:
    wanted = {golden(path, kind) for path, kind in RENDERED} | set(CASES)
    assert set(GOLDEN.iterdir()) == wanted


@pytest.mark.skipif(not which("virt-xml-validate"), reason="virt-xml-validate is not installed (libvirt-clients)")
@pytest.mark.parametrize("path", [path for path, kind in RENDERED if kind == "libvirt"], ids=lambda path: path.stem)
def test_libvirt_accepts_the_xml(path: Path) -> None:
    result = run(["virt-xml-validate", golden(path, "libvirt"), "domain"])
    assert "validates" in result.stderr


@pytest.mark.skipif(not which("virt-xml-validate"), reason="virt-xml-validate is not installed (libvirt-clients)")
def test_the_schema_refuses_what_is_wrong(tmp_path: Path) -> None:
    """So that the test above can fail."""
    bad = tmp_path / "bad.xml"
    bad.write_text(golden(GOLDEN / "disk-block.toml", "libvirt").read_text().replace('io="native"', 'io="magic"'))
    with pytest.raises(StorkitError):
        run(["virt-xml-validate", bad, "domain"])


@pytest.mark.skipif(not which("virt-xml-validate"), reason="virt-xml-validate is not installed (libvirt-clients)")
@pytest.mark.parametrize(
    "source",
    [
        DiskSource("block", "/dev/storkit/vars"),
        DiskSource("file", "/srv/vars.raw"),
        DiskSource("network", protocol="nbd", export="vars", server="san", port=10809),
    ],
    ids=lambda source: source.kind,
)
def test_libvirt_accepts_uefi_variables(tmp_path: Path, source: DiskSource) -> None:
    xml = tmp_path / "guest.xml"
    one = simple(disks=[Disk("web"), Disk("vars", bus="flash")], boot=Boot(firmware="uefi"))
    xml.write_text(render(one, [FILE, source], "libvirt"))
    assert "validates" in run(["virt-xml-validate", xml, "domain"]).stderr
    domain = ET.parse(xml).getroot()
    assert len(domain.findall("devices/disk")) == 1
    (nvram,) = domain.findall("os/nvram")
    assert nvram.get("type") == source.kind


@pytest.mark.parametrize("path", [path for path, kind in RENDERED if kind == "xl"], ids=lambda path: path.stem)
def test_xl_documents_every_key(path: Path) -> None:
    lines = (HERE / "data" / "xl-4.17-cfg-keys.txt").read_text().splitlines()
    documented = {line for line in lines if not line.startswith("#")}
    settings = parse_xl.read_settings(golden(path, "xl").read_text())
    assert settings.keys() <= documented
    disks = settings["disk"]
    assert isinstance(disks, list) and disks
    for spec in disks:
        parameters = parse_xl.read_disk(str(spec))
        assert parameters.keys() <= {"format", "vdev", "access", "backendtype", "target"}
        assert str(spec).endswith("target=" + parameters["target"]), "target= takes the rest: it must be last"


@pytest.mark.parametrize(("path", "kind"), [pair for pair in RENDERED if pair[1] != "uml"])
def test_what_is_rendered_reads_back(path: Path, kind: str) -> None:
    """Render, import: the same guest, but for what the other format has no word for."""
    guest, sources, place, _ = case(path)
    found = parse(render(guest, sources, kind, place), kind=kind)
    nowhere: dict[str, Any] = {"hypervisor": kind, "machine": found.guest.machine}
    if kind == "xl" and guest.boot.firmware == "bios":
        nowhere["console"] = ""
    if kind == "qemu" and place.taps:
        nowhere["nics"] = []  # a tap says nothing of its bridge
        assert any("is no bridge" in text for text in found.warnings)
    assert replace(found.guest, disks=[]) == replace(guest, disks=[], **nowhere)
    names = targets(guest, kind)
    for number, (disk, was) in enumerate(zip(found.guest.disks, guest.disks, strict=True)):
        assert disk.readonly == was.readonly
        assert kind == "xl" or disk.bus == was.bus
        assert disk.target == ("" if kind == "qemu" else names[number])
    wanted = sources if kind == "qemu" else [replace(source, tls_dir="", tls_user="") for source in sources]
    assert found.sources == wanted
    assert [text for text in found.warnings if not text.startswith("-rtc") and "is no bridge" not in text] == []


def simple(**changes: Any) -> Guest:
    return replace(Guest("web", UUID, 512 * 1024**2, disks=[Disk("web")]), **changes)


UEFI = Boot(firmware="uefi")
FILE = DiskSource("file", "/srv/web.raw")
NBD = DiskSource("network", protocol="nbd", export="web", socket="/run/web.sock")


def test_the_administrators_template_comes_first(tmp_path: Path) -> None:
    (tmp_path / "xl").mkdir()
    (tmp_path / "xl" / "guest.cfg.j2").write_text("name = {{ guest.name | xl }}  # ours\n")
    assert render(simple(), [FILE], "xl", templates=[tmp_path]) == 'name = "web"  # ours\n'
    assert render(simple(), [FILE], "qemu", templates=[tmp_path]) == render(simple(), [FILE], "qemu")


def test_an_edited_template_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "xl" / "guest.cfg.j2"
    file.parent.mkdir()
    for text in ("first", "second"):
        file.write_text(text)
        assert render(simple(), [FILE], "xl", templates=[tmp_path]) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ guest.nmae }}", "nmae"),
        ("{{ nothing }}", "nothing"),
        ("\n\n{% if %}", "line 3"),
        ("{{ 1 / 'a' }}", "does not work"),
    ],
)
def test_a_template_that_does_not_work_is_named(tmp_path: Path, template: str, message: str) -> None:
    (tmp_path / "qemu").mkdir()
    (tmp_path / "qemu" / "guest.args.j2").write_text(template)
    with pytest.raises(UsageError) as caught:
        render(simple(), [FILE], templates=[tmp_path])
    assert message in caught.value.message and "guest.args.j2" in caught.value.message


def test_templates_are_found_inside_a_zipapp(tmp_path: Path) -> None:
    """The package and its templates in one .pyz, as `make storkit.pyz` puts them: run by a Python of its own."""
    import shutil
    import sys
    import zipapp

    import jinja2
    import markupsafe

    root = HERE.parents[1]
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(root / "storkit", tree / "storkit", ignore=ignore)
    shutil.copytree(root / "templates", tree / "storkit" / "templates")
    for module in (jinja2, markupsafe):
        source = Path(str(module.__file__)).parent
        shutil.copytree(source, tree / source.name, ignore=ignore)
    (tree / "__main__.py").write_text(
        "from storkit.core.model import DiskSource\n"
        "from storkit.guests import render\n"
        "from storkit.core.guest import Disk, Guest\n"
        f"guest = Guest('web', '{UUID}', 512 * 1024**2, disks=[Disk('web')])\n"
        "assert '.pyz' in render.__file__, render.__file__\n"
        "print(render.render(guest, [DiskSource('file', '/srv/web.raw')], 'qemu'), end='')\n"
    )
    archive = tmp_path / "storkit.pyz"
    zipapp.create_archive(tree, archive)
    shutil.rmtree(tree)
    result = run([sys.executable, "-S", "-E", archive])
    assert result.stdout == render(simple(), [FILE], "qemu")


def test_an_unknown_hypervisor_is_refused() -> None:
    with pytest.raises(Unsupported, match="bhyve"):
        render(simple(), [FILE], "bhyve")


def test_a_missing_template_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "qemu", "gone.args")
    with pytest.raises(NotFound, match=r"qemu/gone\.args\.j2"):
        render(simple(), [FILE])


@pytest.mark.parametrize(
    ("kind", "guest", "source", "message"),
    [
        ("xl", simple(), NBD, "nbd URI"),
        ("xl", simple(), DiskSource("file", "/srv/a,"), "comma"),
        ("xl", simple(cpu="host"), FILE, "cpu"),
        ("libvirt", simple(), replace(NBD, tls="psk"), "pre-shared key"),
        ("qemu", simple(), replace(NBD, protocol="iscsi"), "iscsi"),
        ("qemu", simple(), replace(NBD, socket=""), "neither a socket nor a server"),
        ("qemu", simple(disks=[Disk("web", bus="ide", readonly=True)]), FILE, "read-only"),
        ("qemu", simple(disks=[Disk("web", bus="xen")]), FILE, "no xen disks"),
        ("qemu", simple(disks=[Disk("web", bus="scsi")], machine="microvm"), FILE, "microvm"),
        ("qemu", simple(disks=[Disk("web", bus="ide")], machine="q35"), FILE, "no ide bus"),
        ("qemu", simple(boot=Boot(firmware="uefi")), FILE, "UEFI"),
        ("qemu", simple(), DiskSource("file", "/srv/a\nb"), "U\\+000A"),
        ("qemu", simple(), DiskSource("file", "relative"), "absolute"),
        ("libvirt", simple(disks=[Disk("web", bus="flash")], boot=UEFI), replace(FILE, format="qcow2"), "not qcow2"),
        ("xl", simple(disks=[Disk("web", bus="flash")], boot=UEFI, machine="hvm"), FILE, "keep no UEFI variables"),
        ("uml", simple(vcpus=2), FILE, "one processor"),
        ("uml", simple(), DiskSource("file", "/srv/a:b"), "colon"),
        ("uml", simple(), replace(FILE, format="qcow2"), "qcow2"),
    ],
)
def test_what_a_hypervisor_cannot_do_is_refused(kind: str, guest: Guest, source: DiskSource, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        render(guest, [source], kind)


def test_all_problems_come_at_once() -> None:
    guest = simple(vcpus=0, nics=[Nic("no bridge")], disks=[Disk("web", bus="xen")])
    with pytest.raises(Problems) as caught:
        render(guest, [replace(NBD, protocol="rbd")], "qemu")
    texts = " ".join(problem.message for problem in caught.value.problems)
    assert all(word in texts for word in ("vcpus", "nics[0].bridge", "xen", "rbd"))


def test_a_disk_source_is_missing() -> None:
    with pytest.raises(Unsupported, match="1 disks, but 0"):
        render(simple(), [], "qemu")


def test_free_target_names_go_around_those_given() -> None:
    disks = [Disk("a"), Disk("b", target="vda"), Disk("c", target="vdc"), Disk("d"), Disk("e", bus="scsi")]
    assert targets(simple(disks=disks), "qemu") == ["vdb", "vda", "vdc", "vdd", "sda"]
    assert targets(simple(disks=disks), "xl") == ["xvdb", "xvda", "xvdc", "xvdd", "xvde"]
    many = targets(simple(disks=[Disk(f"v{n}") for n in range(28)]), "libvirt")
    assert many[25:] == ["vdz", "vdaa", "vdab"]


def test_the_volume_is_the_disks_serial_number() -> None:
    uuid = "6f9d6a70-3d19-4a0e-9f5b-02a3f6b1c7aa"
    guest = simple(disks=[Disk("web", uuid=uuid)])
    assert "serial=6f9d6a70-3d19-4a0e-9," in render(guest, [FILE], "qemu")
    xml = ET.fromstring(render(guest, [FILE], "libvirt"))
    assert xml.findtext("devices/disk/serial") == "6f9d6a70-3d19-4a0e-9"


def test_mac_addresses_are_stable_and_different() -> None:
    guest = simple(nics=[Nic("br0"), Nic("br0")])
    other = replace(guest, uuid="16fd2706-8baf-433b-82eb-8c7fada847da")
    macs = [guest.mac(0), guest.mac(1), other.mac(0), other.mac(1)]
    assert len(set(macs)) == 4
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs), "locally administered, not a group's"
    assert macs[0] == replace(guest).mac(0) == "52:d2:f1:5a:b7:b6"


def test_arguments_are_read_line_by_line() -> None:
    guest = simple(boot=Boot("/k", cmdline=" two  spaces \u2009#x "))
    words = read_args(render(guest, [FILE], "qemu"))
    assert words[words.index("-append") + 1] == " two  spaces \u2009#x "
