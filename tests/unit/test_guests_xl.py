"""Xen's own parser (libxlutil, what xl reads configurations with) reads what is rendered for it, without a Xen."""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from storkit.core.errors import StorkitError
from storkit.core.guest import Boot, Disk, Guest
from storkit.core.model import DiskSource
from storkit.guests.check import path_problem, text_problem
from storkit.guests.documents.xl import with_sources
from storkit.guests.parse_xl import read_disk, read_settings
from storkit.guests.quoting import quote_xl
from storkit.guests.render import render

GOLDEN = sorted((Path(__file__).parent / "golden" / "guests").glob("*.xl.cfg"))
FORMATS = {"raw": 4, "qcow": 1, "qcow2": 2, "vhd": 3, "qed": 6}
"""libxl_disk_format of libxl_types.idl."""


def library() -> Any:
    try:
        lib = ctypes.CDLL("libxlutil.so.4.17")
    except OSError:
        return None
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    lib.xlu_cfg_init.restype = pointer
    lib.xlu_cfg_init.argtypes = [pointer, text]
    lib.xlu_cfg_destroy.argtypes = [pointer]
    lib.xlu_cfg_readdata.argtypes = [pointer, text, ctypes.c_int]
    lib.xlu_cfg_get_string.argtypes = [pointer, text, ctypes.POINTER(text), ctypes.c_int]
    lib.xlu_cfg_get_list.argtypes = [pointer, text, ctypes.POINTER(pointer), ctypes.POINTER(ctypes.c_int), ctypes.c_int]
    lib.xlu_cfg_get_listitem.restype = text
    lib.xlu_cfg_get_listitem.argtypes = [pointer, ctypes.c_int]
    lib.xlu_disk_parse.argtypes = [pointer, ctypes.c_int, ctypes.POINTER(text), pointer]
    return lib


LIB = library()
pytestmark = pytest.mark.skipif(LIB is None, reason="libxlutil 4.17 is not installed (libxenmisc4.17)")


class Xl:
    """One configuration, as Xen's parser has it."""

    def __init__(self, text: str) -> None:
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        libc.fclose.argtypes = [ctypes.c_void_p]
        self.cfg = None
        with tempfile.NamedTemporaryFile() as report:
            file = libc.fopen(report.name.encode(), b"w")
            self.cfg = LIB.xlu_cfg_init(file, b"test.cfg")
            data = text.encode()
            self.status = LIB.xlu_cfg_readdata(self.cfg, data, len(data))
            libc.fclose(file)
            self.message = Path(report.name).read_text(errors="replace")

    def __del__(self) -> None:
        if self.cfg:
            LIB.xlu_cfg_destroy(self.cfg)

    def string(self, key: str) -> str | None:
        value = ctypes.c_char_p()
        if LIB.xlu_cfg_get_string(self.cfg, key.encode(), ctypes.byref(value), 1):
            return None
        assert value.value is not None
        return value.value.decode()

    def strings(self, key: str) -> list[bytes]:
        values, count = ctypes.c_void_p(), ctypes.c_int()
        assert LIB.xlu_cfg_get_list(self.cfg, key.encode(), ctypes.byref(values), ctypes.byref(count), 1) == 0
        return [LIB.xlu_cfg_get_listitem(values, number) for number in range(count.value)]

    def disks(self) -> list[tuple[str, str, int]]:
        """Target, vdev and format: the third and fourth field of libxl_device_disk, and the sixth."""
        found = []
        for spec in self.strings("disk"):
            disk = ctypes.create_string_buffer(4096)
            assert LIB.xlu_disk_parse(self.cfg, 1, (ctypes.c_char_p * 1)(spec), disk) == 0, spec
            target, vdev = (ctypes.c_char_p.from_buffer(disk, offset).value or b"" for offset in (16, 24))
            found.append((target.decode(), vdev.decode(), ctypes.c_int.from_buffer(disk, 36).value))
        return found


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_xl_reads_the_golden_files_as_storkit_does(path: Path) -> None:
    text = path.read_text()
    xl = Xl(text)
    assert xl.status == 0, xl.message
    ours = read_settings(text)
    for key, value in ours.items():
        if isinstance(value, str):
            assert xl.string(key) == value
    disks = ours["disk"]
    assert isinstance(disks, list)
    parsed = [read_disk(str(spec)) for spec in disks]
    assert xl.disks() == [(disk["target"], disk["vdev"], FORMATS[disk["format"]]) for disk in parsed]


good = st.text(
    st.one_of(st.sampled_from("'\"\\,;=#[] nx0"), st.characters(exclude_categories=["Cs"])), max_size=30
).filter(lambda text: not text_problem(text))


@given(cmdline=good, path=good.map(lambda text: "/" + text))
def test_nothing_gets_out_of_its_quotes(cmdline: str, path: str) -> None:
    assume(not path.endswith(",") and not path_problem(path))
    guest = Guest("web", "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10", 2**29, boot=Boot("/k", cmdline=cmdline),
                  disks=[Disk("web")])  # fmt: skip
    xl = Xl(render(guest, [DiskSource("file", path)], "xl"))
    assert xl.status == 0, xl.message
    assert (xl.string("cmdline") or "") == cmdline
    assert xl.disks() == [(path, "xvda", FORMATS["raw"])]


pieces = st.sampled_from(
    ["a", "'", '"', "\\\\", "\\'", '\\"', "\\n", "\\x41", "\\q", "#", ";", ",", "[", "]", " ", "7"]
)
strings = st.tuples(st.sampled_from("'\""), st.lists(pieces, max_size=4).map("".join)).map(lambda s: s[0] + s[1] + s[0])
values = st.one_of(
    strings, strings, st.sampled_from(["0", "-1", "0x1F", "07", "[ ]", "[ 'a', \n 2, ]", "x", "", "['a' 'b']"])
)
lines = st.tuples(st.sampled_from("abc"), st.sampled_from([" = ", "=", " += "]), values, st.sampled_from("\n\n;#")).map(
    "".join
)


@given(st.lists(lines, max_size=4).map("".join))
def test_what_storkit_reads_xl_reads_alike(text: str) -> None:
    """Never more lenient than xl, and never with another result."""
    try:
        ours = read_settings(text + "\n")
    except StorkitError:
        return
    xl = Xl(text + "\n")
    assert xl.status == 0, xl.message
    for key, value in ours.items():
        if isinstance(value, str):
            assert xl.string(key) == value


def test_a_comma_at_the_end_of_a_path_is_lost_on_xl() -> None:
    """The trap that limits.py refuses such paths for."""
    xl = Xl(f"disk = [ {quote_xl('vdev=xvda, target=/a,')} ]\n")
    assert xl.disks() == [("/a", "xvda", FORMATS["raw"])]


keyed = st.permutations(["vdev=xvda", "format=qcow2", "access=rw", "backendtype=qdisk", "discard"]).map(
    lambda words: ",".join(word for word in words[:3] if not word.startswith("vdev")) + ",vdev=xvda,target=/srv/a.img"
)
positional = st.tuples(
    st.sampled_from(["/dev/vg/a", "/srv/a.img", "vg/a"]), st.sampled_from(["", "raw", "qcow2"]), st.just("xvda"),
    st.sampled_from(["r", "w", "rw", "ro"]),
).map(",".join)  # fmt: skip
prefixed = st.sampled_from(["phy:", "file:", "qcow2:", "tap:aio:", "tap2:qcow2:"]).map("{}/srv/a.img,xvda,w".format)
sources = st.sampled_from(
    [DiskSource("block", "/dev/storkit/web"), DiskSource("file", "/mnt/web.raw"), DiskSource("file", "/mnt/w", "qcow2")]
)


@given(st.one_of(keyed, positional, prefixed).map(lambda spec: spec.lstrip(",")), sources)
def test_a_disk_of_a_document_is_for_xl_where_storkit_has_put_it(spec: str, source: DiskSource) -> None:
    text = f"disk = [ '{spec}' ]\n"
    assume(Xl(text).status == 0)
    assert Xl(text).disks()[0][1] == "xvda"
    assert Xl(with_sources(text, {"xvda": source})).disks() == [(source.path, "xvda", FORMATS[source.format])]
