"""A guest's own document: with its disks where they are now it is the same in every other byte, and nothing that it
opens is overlooked."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storkit.core import codec
from storkit.core.errors import Conflict, StorkitError, Unsupported, UsageError
from storkit.core.guest import Disk, Guest
from storkit.core.model import DiskSource
from storkit.guests import clone, document, files, parse
from storkit.guests.documents import libvirt, xl
from storkit.guests.documents.edits import Edit, edited
from storkit.guests.place import Place
from storkit.guests.render import render
from storkit.hypervisors._libvirt import host
from tests.unit.documents import DISK, UUID, domain, guest

DATA = Path(__file__).parent / "data"
NEW = DiskSource("block", "/dev/storkit/shop")
FILE = DiskSource("file", "/mnt/volumes/shop.raw")
NBD = DiskSource("network", format="raw", protocol="nbd", export="shop", socket="/run/storkit/shop&.sock")


VIF = 'vif = [ "script=vif-openvswitch,bridge=ovs0,rate=10Mb/s" ]'
XL = f'name = "shop" # ours\nmemory = 512\nunknown_word = [ "stays", 7 ]\ndisk = [ {{}} ]\n{VIF}\n'


@pytest.mark.parametrize(
    ("before", "source", "after"),
    [
        ('"phy:/dev/vg0/shop,xvda2,w"', NEW, '"phy:/dev/storkit/shop,xvda2,w"'),
        ("'phy:vg0/shop,hda,w',", NEW, "'phy:/dev/storkit/shop,hda,w',"),
        ('"file:/srv/shop.img,xvda,w"', NEW, '"phy:/dev/storkit/shop,xvda,w"'),
        ('"tap:qcow2:/srv/shop.qcow2,xvda,w"', NEW, '"phy:/dev/storkit/shop,xvda,w"'),
        ('"phy:/dev/vg0/shop,xvda,w"', FILE, '"file:/mnt/volumes/shop.raw,xvda,w,backendtype=qdisk"'),
        ('"/dev/vg0/shop,raw,xvda,rw"', NEW, '"/dev/storkit/shop,raw,xvda,rw"'),
        ('"/srv/a.qcow2,qcow2,xvda,rw"', NEW, '"/dev/storkit/shop,raw,xvda,rw"'),
        ('"/dev/vg0/shop,,xvda"', NEW, '"/dev/storkit/shop,,xvda"'),
        (
            '"format=qcow2, vdev=xvda, access=rw, backendtype=qdisk, discard, target=/srv/a.qcow2"',
            NEW,
            '"format=raw, vdev=xvda, access=rw, backendtype=phy, discard, target=/dev/storkit/shop"',
        ),
        ('"script=block-drbd,vdev=xvda,target=shop"', NEW, '"vdev=xvda,target=/dev/storkit/shop"'),
        ('"script=block-storkit,vdev=xvda,target=shop"', NEW, '"script=block-storkit,vdev=xvda,target=shop"'),
        ('"script=block-storkit,vdev=xvda,target=old"', NEW, '"vdev=xvda,target=/dev/storkit/shop"'),
        ('"vdev=xvda,target=/dev/vg0/shop"', FILE, '"vdev=xvda,backendtype=qdisk,target=/mnt/volumes/shop.raw"'),
        (
            '"vdev=xvda,target=/dev/vg0/shop"',
            DiskSource("file", "/mnt/a\"b\\c.qcow2", "qcow2"),
            '"vdev=xvda,format=qcow2,backendtype=qdisk,target=/mnt/a\\"b\\\\c.qcow2"',
        ),
    ],
)  # fmt: skip
def test_an_xl_disk_gets_another_source_and_nothing_else_changes(before: str, source: DiskSource, after: str) -> None:
    text = XL.replace("{}", before)
    (disk,) = xl.find_disks(text)
    assert disk.kind == "disk" and disk.line == 4
    assert xl.with_sources(text, {disk.target: source}) == XL.replace("{}", after)


def test_of_several_lists_of_disks_those_count_that_xl_reads() -> None:
    text = (
        'disk = [ "phy:/dev/old,xvda,w" ]\ndisk = [ "phy:/dev/a,xvda,w", ]\ndisk += [ "phy:/dev/b,xvdb,r" ]\nname="g"\n'
    )
    disks = xl.find_disks(text)
    assert [(disk.target, disk.place, disk.readonly) for disk in disks] == [
        ("xvda", "/dev/a", False),
        ("xvdb", "/dev/b", True),
    ]
    changed = xl.with_sources(text, {"xvda": NEW, "xvdb": NEW})
    assert changed == text.replace("/dev/a", NEW.path).replace("/dev/b", NEW.path)


def test_no_xl_path_gets_out_of_its_place() -> None:
    text = XL.replace("{}", '"phy:/dev/vg0/shop,xvda,w"')
    with pytest.raises(UsageError, match="comma"):
        xl.with_sources(text, {"xvda": DiskSource("block", "/dev/a,xvdb")})
    with pytest.raises(UsageError, match="no disk xvdz"):
        xl.with_sources(text, {"xvdz": NEW})


@pytest.mark.parametrize(
    ("words", "targets"),
    [
        ('pci = [ "01:00.0" ]', ["pci 01:00.0"]),
        ('p9 = [ "tag=t,path=/srv,security_model=none" ]', ["p9 tag=t,path=/srv,security_model=none"]),
        ('usbdevice = "disk:/srv/usb.img"', ["usbdevice disk:/srv/usb.img"]),
        ('usbdevice = "tablet"', []),
        ('device_model_args_hvm = [ "-hdb", "/srv/b.img", "-no-hpet" ]', ["-hdb"]),
        ('device_model_args = [ "-drive", "file=/srv/b.img,if=virtio" ]', ["-drive /srv/b.img"]),
        ('disk = [ "/srv/cd.iso,,hdc,cdrom" ]', ["hdc"]),
    ],
)
def test_whatever_else_an_xl_guest_opens_is_refused_until_it_is_named(words: str, targets: list[str]) -> None:
    text = f'name = "shop"\nmemory = 512\n{words}\n'
    assert [disk.target for disk in xl.find_disks(text)] == targets
    if not targets:
        return
    with pytest.raises(UsageError, match="line 3: ") as caught:
        document.adopted("xl", text, {}, [], "f")
    assert f"--local '{targets[0]}'" in caught.value.hint
    assert document.adopted("xl", text, {}, targets, "f") == ([], targets)


@pytest.mark.parametrize(
    ("before", "source", "type", "after"),
    [
        ("<source file='/srv/shop.img'/>", NEW, "block", "<source dev='/dev/storkit/shop'/>"),
        ('<source file="/srv/shop.img" index="1"/>', NEW, "block", '<source dev="/dev/storkit/shop" index="1"/>'),
        ("<source file='/srv/a&amp;b.img'/>", FILE, "file", "<source file='/mnt/volumes/shop.raw'/>"),
        ("<source file='/srv/1'><seclabel model='dac' relabel='no'/></source>", NEW, "block",
         "<source dev='/dev/storkit/shop'><seclabel model='dac' relabel='no'/></source>"),
        ("<source file='/srv/1'/><backingStore/>", NEW, "block", "<source dev='/dev/storkit/shop'/><backingStore/>"),
        ("<source file='/srv/1'/><backingStore type='file'><source file='/srv/base'/><backingStore/></backingStore>",
         NEW, "block", "<source dev='/dev/storkit/shop'/>"),
        ("<source file='/srv/shop.img'/>", NBD, "network",
         '<source protocol="nbd" name="shop"><host transport=\'unix\' socket="/run/storkit/shop&amp;.sock"/></source>'),
    ],
)  # fmt: skip
def test_a_libvirt_disk_gets_another_source_and_nothing_else_changes(
    before: str, source: DiskSource, type: str, after: str
) -> None:
    text = domain(DISK.replace("{}", before))
    (disk,) = libvirt.find_disks(text)
    assert (disk.target, disk.line, disk.kind) == ("vda", 8, "disk")
    changed = libvirt.with_sources(text, {"vda": source})
    assert changed == domain(DISK.replace("{}", after).replace("type='file'", f"type='{type}'", 1))


def test_a_libvirt_disk_of_a_server_becomes_a_device() -> None:
    auth = "<auth username='u'><secret type='ceph' usage='x'/></auth>"
    rbd = f"{auth}<source protocol='rbd' name='pool/shop'><host name='mon1'/></source>"
    text = domain(DISK.replace("{}", rbd).replace("type='file'", "type='network'", 1))
    (disk,) = libvirt.find_disks(text)
    assert (disk.target, disk.place, disk.source) == ("vda", "rbd:pool/shop", None)
    with pytest.raises(UsageError, match="line 8: disk vda \\(rbd:pool/shop\\) is no volume"):
        document.adopted("libvirt", text, {}, [], "f")
    changed = libvirt.with_sources(text, {"vda": NEW})
    assert "rbd" not in changed and "auth" not in changed and '<source dev="/dev/storkit/shop"/>' in changed


@pytest.mark.parametrize(
    ("device", "target"),
    [
        ("<disk type='file' device='cdrom'><source file='/srv/cd.iso'/><target dev='sda' bus='sata'/></disk>", "sda"),
        ("<disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vdb'/></disk>", "vdb"),
        ("<filesystem type='mount'><source dir='/srv'/><target dir='share'/></filesystem>", "share"),
        ("<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1'/></source></hostdev>",
         "hostdev domain=0 bus=1"),
        ("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>", "tpm"),
        ("<interface type='hostdev'><source><address type='pci' bus='1'/></source></interface>",
         "interface type=pci bus=1"),
        ("<memory model='nvdimm'><source><path>/dev/dax0</path></source></memory>", "memory /dev/dax0"),
    ],
)  # fmt: skip
def test_whatever_else_a_domain_opens_is_refused_until_it_is_named(device: str, target: str) -> None:
    text = domain(device)
    with pytest.raises(UsageError, match=f"line 8: .*{target}"):
        document.adopted("libvirt", text, {}, [], "f")
    assert document.adopted("libvirt", text, {}, [target], "f") == ([], [target])
    assert render(guest_local(text, target), [], "libvirt") == text


def guest_local(text: str, target: str) -> Guest:
    return document.with_facts(Guest("shop", UUID, 0, hypervisor="libvirt", document=text, local=[target]))


def test_an_empty_drive_opens_nothing() -> None:
    text = domain("<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>")
    assert document.adopted("libvirt", text, {}, [], "f") == ([], [])
    assert render(document.with_facts(Guest("shop", UUID, 0, hypervisor="libvirt", document=text)), []) == text


def test_a_disk_of_qemus_own_words_is_a_disk() -> None:
    words = '<qemu:commandline xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">{}</qemu:commandline>'
    args = "".join(f"<qemu:arg value={word!r}/>" for word in ("-drive", "file=/srv/b.img,if=virtio", "-hdb", "/srv/c"))
    text = domain("").replace("</domain>", words.replace("{}", args) + "\n</domain>")
    with pytest.raises(StorkitError) as caught:
        document.adopted("libvirt", text, {"-hdb": "other"}, [], "f")
    assert [each.message.partition("argument ")[2] for each in caught.value.each[:2]] == [
        "-drive /srv/b.img (/srv/b.img) is no volume",
        "-hdb (/srv/c) is no volume",
    ]


def test_a_record_that_somebody_edited_is_checked_the_same_way(tmp_path: Path) -> None:
    text = domain(DISK.replace("{}", "<source file='/srv/shop.img'/>"))
    made = guest("libvirt", text, vda="shop")
    files.save(tmp_path, made)
    assert (tmp_path / "shop.xml").read_text() == text
    assert files.load(tmp_path, "shop") == made and made.memory == 976563 << 10
    record = tmp_path / "shop.toml"
    assert "memory" not in record.read_text() and 'document = "shop.xml"' in record.read_text()
    (tmp_path / "shop.xml").write_text(
        text.replace("</devices>", "  " + DISK.replace("{}", "").replace("vda", "vdb") + "</devices>")
    )
    with pytest.raises(UsageError, match=r"shop\.toml: line 9: disk vdb"):
        files.load(tmp_path, "shop")
    (tmp_path / "shop.xml").write_text(text.replace("shop</name>", "other</name>"))
    with pytest.raises(UsageError, match="the document's name is 'other'"):
        files.load(tmp_path, "shop")
    (tmp_path / "shop.xml").write_text(text)
    record.write_text(
        record.read_text() + "memory = 5\n" if "[[" not in record.read_text() else "memory = 5\n" + record.read_text()
    )
    with pytest.raises(UsageError, match="memory: the document says it"):
        files.load(tmp_path, "shop")
    (tmp_path / "shop.xml").unlink()
    with pytest.raises(StorkitError, match=r"shop\.xml cannot be read"):
        files.load(tmp_path, "shop")
    files.delete(tmp_path, "shop")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../shop.xml", "/etc/passwd", "other.xml", "shop.cfg", "shop.toml"])
def test_a_record_names_its_own_document_alone(tmp_path: Path, name: str) -> None:
    files.save(tmp_path, guest("libvirt", domain(DISK.replace("{}", "<source file='/srv/s'/>")), vda="shop"))
    record = tmp_path / "shop.toml"
    record.write_text(record.read_text().replace("shop.xml", name))
    with pytest.raises(UsageError, match="document: it cannot be"):
        files.load(tmp_path, "shop")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("xl", 'name = "shop"\nmemory = 512\nvncpasswd = "sesame"\n'),
        ("xl", 'name = "shop"\nmemory = 512\nvfb = [ "type=vnc,vncpasswd=sesame" ]\n'),
        ("libvirt", domain("<graphics type='vnc' port='-1' passwd='sesame'/>")),
        ("libvirt", domain("<graphics type='spice' passwd = \"sesame\"/>")),
        ("xl", 'name = "shop"\nmemory = 512\ndevice_model_args = [ "-object", "secret,id=s,data=sesame" ]\n'),
    ],
)  # fmt: skip
def test_a_password_is_refused_and_not_shown(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match="a password stands in the document") as caught:
        render(guest(kind, text), [])
    assert "sesame" not in str(caught.value) + caught.value.hint
    if "data=" in text:
        return
    empty = text.replace("sesame", "")
    assert render(guest(kind, empty), []) == empty


def test_for_a_host_the_document_has_what_was_chosen_for_the_guest() -> None:
    text = domain(DISK.replace("{}", "<source file='/srv/s'/>")).replace(f"  <uuid>{UUID}</uuid>\n", "")
    made = render(guest("libvirt", text, vda="shop"), [NEW], place=Place(machine="pc-i440fx-7.2"))
    assert f"<name>shop</name><uuid>{UUID}</uuid>" in made and "machine='pc-i440fx-7.2'" in made
    made = render(guest("xl", 'name = "shop"\nmemory = 512'), [], place=Place(machine="pv-4.17"))
    assert made == f'name = "shop"\nmemory = 512\nuuid = "{UUID}"\n'


def test_another_hypervisor_is_not_told_half_of_it() -> None:
    vif = 'vif = [ "script=vif-openvswitch,bridge=ovs0" ]'
    made = guest("xl", f'name = "shop"\nuuid = "{UUID}"\nmemory = 512\ntype = "pvh"\nkernel = "/k"\nvnc = 1\n{vif}\n')
    with pytest.raises(StorkitError) as caught:
        render(made, [], "libvirt")
    said = [each.message for each in caught.value.each]
    assert any("vnc" in each for each in said) and any("script=vif-openvswitch" in each for each in said)
    assert all(isinstance(each, Unsupported) for each in caught.value.each)


def test_a_document_goes_through_a_journal_as_it_is() -> None:
    made = guest("libvirt", domain(DISK.replace("{}", "<source file='/srv/s'/>")) + "\n", vda="shop")
    assert codec.load(Guest, codec.dump(made)) == made


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_no_text_breaks_the_readers(noise: str) -> None:
    for read, texts in (
        (libvirt.find_disks, (noise, domain(noise), domain(DISK.replace("{}", noise)))),
        (xl.find_disks, (noise, XL.replace("{}", noise), XL.replace("{}", f'"{noise}"'))),
    ):
        for text in texts:
            with suppress(StorkitError):
                read(text)


word = st.text(st.sampled_from("äé&<>'\" a/,=\\"), max_size=8)


@given(before=word, path=word, after=word)
def test_a_domain_of_any_letters_keeps_them(before: str, path: str, after: str) -> None:
    from xml.sax.saxutils import escape, quoteattr

    text = domain(
        f"<!--{before.replace('-', '')}--><title>{escape(before)}</title>"
        + DISK.replace("{}", f"<source file={quoteattr('/' + path)}/>")
        + f"<description>{escape(after)}</description>"
    )
    (disk,) = libvirt.find_disks(text)
    assert disk.place == "/" + path
    changed = libvirt.with_sources(text, {"vda": DiskSource("file", f"/new{path}")})
    (disk,) = libvirt.find_disks(changed)
    assert disk.place == f"/new{path}"
    assert libvirt.with_sources(changed, {"vda": DiskSource("file", "/" + path)}).count(escape(after)) >= 1


def test_changes_come_one_after_the_other() -> None:
    assert edited("abcdef", [Edit(4, 5, "E"), Edit(0, 1, ""), Edit(6, 6, "!")]) == "bcdEf!"


@pytest.mark.parametrize(
    "text",
    [
        "A=b " * 60000,
        "," * 250000,
        "disk = [ " + '"phy:/a,xvda,w",' * 20000 + "]",
        'name="a"\nvif = [ ' + '"mac=x,y=z",' * 20000 + "]",
        "<domain><devices>" + "<disk><source file='/a'/><target dev='a'/></disk>" * 8000 + "</devices></domain>",
        "<domain " + " ".join(f"a{number}='b'" for number in range(10000)) + "/>",
        "<domain>" + "<filesystem><target dir='a'/></filesystem>" * 3000 + "</domain>",
        "<domain>" * 30000,
        "qemu-kvm " + ">" * 100000,
        "qemu-kvm -drive " + "," * 100000,
        "qemu-kvm " + "-hda /a " * 10000,
        "qemu-kvm '" + "\\" * 100000,
        "'" * 100001,
        "x=" * 50000 + "kvm ",
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_large_text_comes_to_an_end(text: str) -> None:
    """What grew with the square of its length would take minutes."""
    for read in (
        lambda: parse.parse(text),
        lambda: document.adopted("xl", text, {}, [], "f"),
        lambda: document.adopted("libvirt", text, {}, [], "f"),
    ):
        with suppress(StorkitError):
            assert read()


def test_firmware_variables_are_a_file_of_the_hosts() -> None:
    text = domain("").replace("hvm</type>", "hvm</type><nvram template='/t'>/var/lib/nvram/shop.fd</nvram>")
    with pytest.raises(UsageError, match="line 6: UEFI variables nvram"):
        document.adopted("libvirt", text, {}, [], "f")
    assert document.adopted("libvirt", text, {}, ["nvram"], "f") == ([], ["nvram"])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("libvirt", domain("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>")),
        ("xl", 'name = "shop"\nmemory = 5\nvtpm = [ "backend=t" ]\n'),
        ("qemu", "qemu-system-x86_64 -name shop -m 5 -tpmdev emulator,id=t,chardev=c"),
    ],
)
def test_the_state_of_a_tpm_does_not_move(kind: str, text: str) -> None:
    local = [disk.target for disk in document.find_disks(kind, text)]
    made = document.with_facts(Guest("shop", UUID, 0, hypervisor=kind, document=text, local=local))
    (problem,) = document.stays(made)
    assert isinstance(problem, Unsupported) and "has a TPM, whose state stays on its host (line " in problem.message


FD = "/var/lib/nvram/shop.fd"


@pytest.mark.parametrize(
    ("before", "source", "after"),
    [
        (f"<nvram template='/t'>{FD}</nvram>", NEW,
         "<nvram type='block' template='/t'><source dev=\"/dev/storkit/shop\"/></nvram>"),
        (f"<nvram>{FD}</nvram>", FILE, "<nvram>/mnt/volumes/shop.raw</nvram>"),
        (f"<nvram type='file'><source file='{FD}'/></nvram>", NEW,
         "<nvram type='block'><source dev=\"/dev/storkit/shop\"/></nvram>"),
        (f"<nvram>{FD}</nvram>", NBD,
         "<nvram type='network'><source protocol=\"nbd\" name=\"shop\"><host transport='unix' "
         "socket=\"/run/storkit/shop&amp;.sock\"/></source></nvram>"),
    ],
)  # fmt: skip
def test_firmware_variables_become_a_volume(before: str, source: DiskSource, after: str) -> None:
    text = domain("").replace("hvm</type>", f"hvm</type><loader readonly='yes' type='pflash'>/c.fd</loader>{before}")
    made = guest("libvirt", text, nvram="shop")
    assert render(made, [source]) == text.replace(before, after)
    assert clone.clone(made, "till").disks[0].volume == "till"
    assert host.variables(made) == host.variables(None) == "--keep-nvram"  # libvirt would remove the volume's file
    assert host.variables(Guest("shop", UUID, 1 << 20)) == "--nvram"
    assert host.variables(Guest("shop", UUID, 1 << 20, disks=[Disk("vars", bus="flash")])) == "--keep-nvram"
    assert any("says: nvram" in each.message for each in document.lost(made, "qemu"))


def test_no_file_is_overwritten_that_is_no_document_of_the_guests(tmp_path: Path) -> None:
    text = domain(DISK.replace("{}", "<source file='/srv/shop.img'/>"))
    (tmp_path / "shop.xml").write_text("<mine/>")
    with pytest.raises(Conflict, match=r"shop\.xml is there already"):
        files.save(tmp_path, guest("libvirt", text, vda="shop"))
    assert (tmp_path / "shop.xml").read_text() == "<mine/>" and not (tmp_path / "shop.toml").exists()
    (tmp_path / "shop.xml").write_text(text)  # as a `save` leaves it that was killed before the record
    files.save(tmp_path, guest("libvirt", text, vda="shop"))
    assert files.load(tmp_path, "shop").document == text
    (tmp_path / "shop.cfg").write_text("mine")
    files.delete(tmp_path, "shop")
    assert [each.name for each in tmp_path.iterdir()] == ["shop.cfg"]


@pytest.mark.parametrize("text", ["memory = 512\n", "name = 5\nmemory = 512\n", domain("").replace("shop", "")])
def test_a_document_that_names_no_guest_is_refused(text: str) -> None:
    kind = parse.sniff(text)
    made = document.with_facts(Guest("shop", UUID, 0, hypervisor=kind, document=text))
    with pytest.raises(UsageError, match="names no guest"):
        render(made, [])
    document.language(kind).renamed(text, "till")
