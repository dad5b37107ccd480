"""Whatever stands in a name, path or command line stays inside its quotes: it is read back as it was written, by
readers that are not the writers' mirror images where there is one (ElementTree, json)."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from storkit.core.errors import StorkitError
from storkit.core.guest import Boot, Disk, Guest
from storkit.core.model import DiskSource
from storkit.guests.check import path_problem, text_problem
from storkit.guests.parse import parse
from storkit.guests.parse_qemu import options
from storkit.guests.parse_xl import read_disk, read_settings
from storkit.guests.place import Place
from storkit.guests.render import read_args, render

UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
SPECIAL = list("""'"\\,;=<>&[]{}()#$%`|!? \t/:-_.~^*@""")
BROKEN = ["\n", "\r", "\0", "\x1b", "\x85", "\u2028", "\ud800", "\ufffe"]

any_text = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters(exclude_categories=["Cs"])), max_size=40)
good_text = st.lists(
    st.one_of(
        st.sampled_from([character for character in SPECIAL if not text_problem(character)]),
        st.sampled_from(
            ["target=", "vdev=hda", ",,", ",readonly=on", "]]>", "</cmdline>", "&amp;", "{{ 7 }}", "{% x %}", '"\n'[:1],
             "\\n", "-daemonize", "access=ro", "' ]", '" ]', "ü", "\u2009", "🐧"]
        ),
        st.characters(exclude_categories=["Cs"]).filter(lambda character: not text_problem(character)),
    ),
    max_size=12,
).map("".join)  # fmt: skip
good_path = good_text.map(lambda text: "/" + text.replace("..", "--")).filter(lambda path: not path_problem(path))


def guest(cmdline: str, kernel: str = "/k", console: str = "") -> Guest:
    return Guest("web", UUID, 512 * 1024**2, boot=Boot(kernel, cmdline=cmdline), disks=[Disk("web")], console=console)


@given(cmdline=good_text, kernel=good_path, console=good_path, path=good_path, qmp=good_path)
def test_qemu(cmdline: str, kernel: str, console: str, path: str, qmp: str) -> None:
    one = guest(cmdline, kernel, console)
    text = render(one, [DiskSource("file", path)], "qemu", Place(qmp=qmp, pidfile=qmp))
    args = read_args(text)
    assert args[args.index("-kernel") + 1] == kernel
    if cmdline:
        assert args[args.index("-append") + 1] == cmdline
    assert args[args.index("-pidfile") + 1] == qmp
    chardevs = [options(args[n + 1], "type") for n, word in enumerate(args) if word == "-chardev"]
    assert [chardev["path"] for chardev in chardevs] == [qmp, console]
    assert [len(chardev) for chardev in chardevs] == [5, 4], "no option more than the template's"
    node = json.loads(args[args.index("-blockdev") + 1])
    assert node["file"]["filename"] == path
    assert len(args) == len(read_args(render(guest("x" if cmdline else "", console="/c"), [DiskSource("file", "/p")],
                                             "qemu", Place(qmp="/q", pidfile="/q"))))  # fmt: skip
    found = parse(text, kind="qemu").guest
    assert found == replace(one, disks=found.disks, machine="pc")


@given(cmdline=good_text, kernel=good_path, console=good_path, path=good_path, export=good_text)
def test_libvirt(cmdline: str, kernel: str, console: str, path: str, export: str) -> None:
    one = replace(guest(cmdline, kernel, console), disks=[Disk("web"), Disk("net")])
    nbd = DiskSource("network", protocol="nbd", export=export, socket=path)
    text = render(one, [DiskSource("block", path), nbd], "libvirt")
    root = ET.fromstring(text)
    assert root.findtext("os/kernel") == kernel
    assert (root.findtext("os/cmdline") or "") == cmdline
    sources = root.findall("devices/disk/source")
    assert sources[0].attrib == {"dev": path}
    assert sources[1].attrib == {"protocol": "nbd", "name": export}
    assert sources[1][0].attrib == {"transport": "unix", "socket": path}
    serial = root.find("devices/serial/source")
    assert serial is not None and serial.attrib == {"path": console, "append": "on"}
    plain = render(replace(one, boot=Boot("/k", cmdline="x" if cmdline else ""), console="/c"),
                   [DiskSource("block", "/p"), replace(nbd, socket="/p", export="e")], "libvirt")  # fmt: skip
    assert [element.tag for element in root.iter()] == [element.tag for element in ET.fromstring(plain).iter()]


@given(cmdline=good_text, kernel=good_path, path=good_path)
def test_xl(cmdline: str, kernel: str, path: str) -> None:
    assume(not path.endswith(","))
    text = render(guest(cmdline, kernel), [DiskSource("file", path)], "xl")
    settings = read_settings(text)
    assert settings["kernel"] == kernel
    assert settings.get("cmdline", "") == cmdline
    disks = settings["disk"]
    assert isinstance(disks, list)
    (disk,) = disks
    assert read_disk(str(disk)) == {
        "format": "raw",
        "vdev": "xvda",
        "access": "rw",
        "backendtype": "qdisk",
        "target": path,
    }
    plain = read_settings(render(guest("x" if cmdline else ""), [DiskSource("file", "/p")], "xl"))
    assert settings.keys() == plain.keys()


@pytest.mark.parametrize("kind", ["qemu", "libvirt", "xl", "uml"])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_no_syntax_carries_is_refused_everywhere(kind: str, broken: str) -> None:
    good = guest("quiet", "/k", "/c")
    file = DiskSource("file", "/p")
    wrong = [
        (replace(good, boot=Boot("/k", cmdline=f"a{broken}b")), file, Place()),
        (replace(good, boot=Boot(f"/k{broken}")), file, Place()),
        (replace(good, boot=Boot("/k", f"/i{broken}")), file, Place()),
        (replace(good, console=f"/c{broken}"), file, Place()),
        (replace(good, extra=[f"a{broken}b"]), file, Place()),
        (replace(good, name=f"a{broken}b"), file, Place()),
        (good, DiskSource("file", f"/p{broken}"), Place()),
        (good, file, Place(qmp=f"/q{broken}")),
    ]
    for one, source, place in wrong:
        with pytest.raises(StorkitError):
            render(one, [source], kind, place)


@given(name=any_text, target=any_text, bridge=any_text, machine=any_text)
def test_words_are_words(name: str, target: str, bridge: str, machine: str) -> None:
    """Names that go into option strings bare are either harmless or refused."""
    one = replace(guest("q"), name=name, disks=[Disk("web", target)], machine=machine)
    try:
        text = render(one, [DiskSource("file", "/p")], "qemu")
    except StorkitError:
        return
    assert not set(name + target + machine) & set(SPECIAL) - set("-_.")
    assert len(read_args(text)) == len(read_args(render(guest("q"), [DiskSource("file", "/p")], "qemu")))


@given(any_text, st.sampled_from(["libvirt", "xl", "qemu", ""]))
def test_nothing_that_is_imported_ends_in_a_traceback(text: str, kind: str) -> None:
    try:
        parse(text, kind=kind)
    except StorkitError as error:
        assert error.message


@given(st.data(), st.sampled_from(["libvirt", "xl", "qemu"]))
def test_damaged_configurations_end_in_an_error_or_a_guest(data: st.DataObject, kind: str) -> None:
    text = render(guest("a b", console="/c"), [DiskSource("file", "/srv/p.raw")], kind)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 30)))
    try:
        parse(text[:start] + data.draw(any_text) + text[end:], kind=kind)
    except StorkitError as error:
        assert error.message
