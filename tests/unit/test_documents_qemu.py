"""QEMU commands as documents: with their disks where they are now they are the same in every other byte."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storkit.core.errors import StorkitError, Unsupported, UsageError
from storkit.core.guest import Guest, derived_mac
from storkit.core.model import DiskSource
from storkit.guests import clone, document, files, parse
from storkit.guests.command import arguments
from storkit.guests.documents import launch, options, qemu
from storkit.guests.documents.edits import Edit, edited
from storkit.guests.place import Place
from storkit.guests.render import render
from storkit.system.timeouts import scaled

UUID = "11111111-2222-4333-8444-555555555555"
LV = DiskSource("block", "/dev/storkit/shop")
FILE = DiskSource("file", "/mnt/volumes/a,b's.qcow2", "qcow2")
NBD = DiskSource("network", protocol="nbd", export="shop", socket="/run/storkit/s.sock")
NBD_WORDS = (
    "file.driver=nbd,file.server.type=unix,file.server.path=/run/storkit/s.sock,file.export=shop,"
    "file.reconnect-delay=300"
)
NBD_JSON = '"server":{"type":"unix","path":"/run/storkit/s.sock"},"export":"shop","reconnect-delay":300'
BEGIN = "qemu-system-x86_64 -name shop -m 512"
PLACE = Place(accel="tcg", machine="pc-i440fx-7.2", qmp="/run/q,1", pidfile="/run/p")


def guest(text: str, local: list[str] | None = None) -> Guest:
    volumes = {disk.target: f"v{n}" for n, disk in enumerate(qemu.find_disks(text)) if disk.mapped}
    disks, kept = document.adopted("qemu", text, volumes, local or [], "f")
    return document.with_facts(Guest("shop", UUID, 0, hypervisor="qemu", document=text, local=kept, disks=disks))


def rendered(text: str, *sources: DiskSource) -> str:
    return render(guest(text), sources)


@pytest.mark.parametrize(
    ("before", "source", "after"),
    [
        ("-drive file=/srv/a.img,format=raw,if=virtio", LV, "-drive file=/dev/storkit/shop,format=raw,if=virtio"),
        ("-drive file=/srv/a.img,if=virtio", LV, "-drive file=/dev/storkit/shop,format=raw,if=virtio"),
        ("-drive if=virtio,file=/srv/a=b,,c.img", LV, "-drive if=virtio,file=/dev/storkit/shop,format=raw"),
        ("-drive format=raw,file='/srv/a b'", FILE, "-drive format=qcow2,file='/mnt/volumes/a,,b'\\''s.qcow2'"),
        ('-drive "file=/srv/$x,format=raw"', LV, '-drive "file=/dev/storkit/shop,format=raw"'),
        ("-drive file=$x,format=raw", LV, "-drive file=/dev/storkit/shop,format=raw"),
        ("-drive file=/srv/a.qcow2,format=qcow2,l2-cache-size=1M,cache=none", LV,
         "-drive file=/dev/storkit/shop,format=raw,cache=none"),
        ("-drive file=/srv/a,format=raw,iops=5", NBD, f"-drive {NBD_WORDS},format=raw,iops=5"),
        ("-drive file=nbd:unix:/s:exportname=x,format=raw,id=d", LV, "-drive file=/dev/storkit/shop,format=raw,id=d"),
        ("-drive file=rbd:pool/shop,format=raw", LV, "-drive file=/dev/storkit/shop,format=raw"),
        ("-drive driver=raw,file.driver=host_device,file.filename=/dev/vg/a,id=d", NBD,
         f"-drive driver=raw,{NBD_WORDS},id=d"),
        ("-drive file.filename=/srv/a,if=virtio", LV, "-drive file.filename=/dev/storkit/shop,if=virtio,format=raw"),
        ("-drive driver=rbd,pool=p,image=i,if=virtio", LV,
         "-drive driver=host_device,filename=/dev/storkit/shop,if=virtio"),
        ("-hda /srv/a.img", LV, "-drive file=/dev/storkit/shop,format=raw,index=0,media=disk"),
        ("--hdd '/srv/a b'", NBD, f"-drive '{NBD_WORDS},format=raw,index=3,media=disk'"),
        ("-sd /srv/a", LV, "-drive file=/dev/storkit/shop,format=raw,if=sd"),
        ("/srv/a.img", LV, "-drive file=/dev/storkit/shop,format=raw,index=0,media=disk"),
        ("-pflash /srv/vars.fd", LV, "-drive file=/dev/storkit/shop,format=raw,if=pflash"),
        ("-blockdev driver=raw,node-name=n,file.driver=file,file.filename=/a,file.locking=off", LV,
         "-blockdev driver=raw,node-name=n,file.driver=host_device,file.filename=/dev/storkit/shop,file.locking=off"),
        ("-blockdev driver=file,filename=/a,node-name=n,aio=native -device virtio-blk,drive=n", NBD,
         "-blockdev driver=nbd," + NBD_WORDS.replace("file.driver=nbd,", "").replace("file.", "")
         + ",node-name=n -device virtio-blk,drive=n"),
        ("-blockdev driver=luks,key-secret=s,node-name=n,file.driver=file,file.filename=/a", LV,
         "-blockdev driver=luks,key-secret=s,node-name=n,file.driver=host_device,file.filename=/dev/storkit/shop"),
        ("""-blockdev '{"node-name": "n","driver":"qcow2","file":{"filename":"/a","driver":"file"},"size":5}'""", LV,
         """-blockdev '{"node-name": "n","driver":"raw","""
         """"file":{"filename":"/dev/storkit/shop","driver":"host_device"}}'"""),
        ("""-blockdev "{'driver':'host_device','filename':'/dev/a','node-name':'n'}\"""", NBD,
         '-blockdev "' + ("{'driver':\"nbd\"," + NBD_JSON + ",'node-name':'n'}").replace('"', '\\"') + '"'),
        ("""-blockdev '{"driver":"file","filename":"/a","node-name":"s"}' """
         """-blockdev '{"node-name":"f","driver":"qcow2","file":"s"}'""", LV,
         """-blockdev '{"driver":"host_device","filename":"/dev/storkit/shop","node-name":"s"}' """
         """-blockdev '{"node-name":"f","driver":"raw","file":"s"}'"""),
    ],
)  # fmt: skip
def test_a_disk_gets_another_source_and_nothing_else_changes(before: str, source: DiskSource, after: str) -> None:
    text = f"#!/bin/sh\nset -e # ours\nx=/srv/x\nLC_ALL=C {BEGIN} \\\r\n\t{{}} -vga  none 2>&1 &\n"
    assert rendered(text.replace("{}", before), source) == text.replace("{}", after)


def test_one_argument_a_line_stays_so() -> None:
    text = '-nodefaults\n-blockdev\n{"driver":"file","filename":"/a \'b","node-name":"n"}\r\n\n-hda\n/b\n'
    new = rendered(text, LV, NBD)
    assert new.split("\n")[2:] == [
        '{"driver":"host_device","filename":"/dev/storkit/shop","node-name":"n"}\r', "", "-drive",
        f"{NBD_WORDS},format=raw,index=0,media=disk", "",
    ]  # fmt: skip


def test_tls_comes_with_its_credentials() -> None:
    source = DiskSource("network", protocol="nbd", export="e", server="::1", port=5, tls="x509", tls_dir="/t,s")
    text = rendered(f"{BEGIN} -hda /a", source)
    assert " -object tls-creds-x509,id=storkit-tls0,endpoint=client,dir=/t,,s,verify-peer=on -drive " in text
    assert "file.server.host=::1,file.server.port=5,file.server.keep-alive=on" in text
    assert "file.tls-creds=storkit-tls0" in text


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("-hda /a -cdrom /b.iso -fda /f", {"hda": "disk", "hdc": "cdrom", "fda": "floppy"}),
        ("-drive file=/a -drive file=/b,if=virtio -drive if=virtio,index=5,file=/c -drive file=/d,if=scsi,bus=1,unit=2",
         {"hda": "disk", "vda": "disk", "vdf": "disk", "sdj": "disk"}),
        ("-drive if=none,id=cd,media=cdrom -drive if=none,id=b,file=/b,media=cdrom", {"b": "cdrom"}),
        ("-drive if=pflash,readonly=on,file=/code.fd -drive if=pflash,file=/vars.fd,unit=1 -hda /a",
         {"hda": "disk", "nvram": "nvram"}),
        ("-pflash /code.fd -pflash /vars.fd", {"pflash0": "firmware", "nvram": "nvram"}),
        ("-blockdev driver=file,filename=/c,node-name=c,read-only=on -blockdev driver=file,filename=/v,node-name=v "
         "-blockdev driver=raw,file=v,node-name=w -machine q35,pflash0=c,pflash1=w", {"v": "", "nvram": "nvram"}),
        ("-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=/a,backing.driver=qcow2,"
         "backing.file.driver=file,backing.file.filename=/b", {"n": "disk", "n.backing": "argument"}),
        ("-blockdev driver=quorum,node-name=q,children.0.driver=file,children.0.filename=/a,children.1.driver=file,"
         "children.1.filename=/b", {"q.children.0": "argument", "q.children.1": "argument"}),
        ("-blockdev driver=null-co,node-name=n,size=5 -drive format=raw,if=ide", {}),
        ("-virtfs local,path=/srv,mount_tag=t", {"-virtfs local,path=/srv,mount_tag=t": "filesystem"}),
        ("-device vfio-pci,host=01:00.0", {"-device vfio-pci,host=01:00.0": "device"}),
        ("-device usb-host -device usb-host", {"-device usb-host": "device", "-device usb-host (2)": "device"}),
        ("-tpmdev emulator,id=t,chardev=c", {"tpm": "device"}),
        ("-object secret,id=s,file=/k", {"-object secret,id=s,file=/k": "secret"}),
        ("-netdev user,id=n,smb=/srv -mem-path /huge",
         {"-netdev user,id=n,smb=/srv": "filesystem", "-mem-path /huge": "memory"}),
        ("-serial /dev/ttyS0 -serial /dev/null -serial pty", {"-serial /dev/ttyS0": "device"}),
        ("-chardev file,id=c,path=/log -chardev null,id=d -vnc :0 -append 'file=/x'", {}),
    ],
)  # fmt: skip
def test_whatever_a_command_opens_has_a_name(words: str, found: dict[str, str]) -> None:
    wanted = {name: kind for name, kind in found.items() if kind}
    assert {disk.target: disk.kind for disk in qemu.find_disks(f"{BEGIN} {words}")} == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-snapshot", "-snapshot: its disks would not be"),
        ("-drive file=/a,snapshot=on", "stays on its host"),
        ("-readconfig /a", "may open what is not seen"),
        ("-set drive.d.file=/b", "may open what is not seen"),
        ("-netdev tap,id=n,fd=5", "a descriptor of the program"),
        ('-netdev \'{"type":"tap","fd":"5"}\'', "a descriptor of the program"),
        ("-add-fd fd=5,set=1", "a descriptor of the program"),
        ("-kernel vmlinuz", "no full path"),
        ("-append ''", "it is empty"),
        ("-append 'a\nb'", "cannot be passed on"),
        ("-blockdev '{\"driver\":'", "no JSON"),
        ("-drive file=$y", "only a shell knows what this is: \\$y is not set here"),
        ("-drive file=$(mktemp)", "only a shell knows what this is: \\$\\(mktemp\\)"),
        ("-drive file=${x:-/a}", "only a shell knows"),
        ("-m lots", "is not a size"),
        ("-hda", "lacks its argument"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_line(words: str, message: str) -> None:
    with pytest.raises(StorkitError, match=f"line 3: .*{message}"):
        document.find_disks("qemu", f"#!/bin/sh\nset -e\n{BEGIN} {words}\n")


def test_an_image_that_stays_local_has_a_full_path() -> None:
    text = f"{BEGIN} -drive file=cd.iso,media=cdrom,id=cd -hda fat:/srv -fda /f"
    with pytest.raises(UsageError, match=r"line 1: cd \(cd\.iso\) is no full path") as caught:
        render(guest(text, ["cd", "fda"]), [LV])
    assert len(caught.value.each) == 1
    assert render(guest(f"{BEGIN} -hda cd.iso"), [LV]).endswith("file=/dev/storkit/shop,format=raw,index=0,media=disk")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"if true; then {BEGIN} -hda /a; fi", "stands in an if or a loop"),
        (f"if true; then x=/a; fi\n{BEGIN} -hda $x", "x is not always the same"),
        (f"true && x=/a\n{BEGIN} -hda $x", "x is not always the same"),
        (f"taskset -c 1 {BEGIN} -hda /a", "started by another program here: taskset -c 1"),
        (f"sudo -u x {BEGIN} -hda /a", "started by another program here: sudo -u x"),
        (f"{BEGIN} -hda 'a", "a quotation does not end"),
        (f"x=a{'$x' * 30}\n" + "x=$x$x$x$x$x$x$x$x\n" * 10 + f"{BEGIN} -hda $x", "only a shell|put in too often"),
    ],
)  # fmt: skip
def test_only_what_is_the_same_each_time_is_taken_from_a_script(text: str, message: str) -> None:
    with pytest.raises(StorkitError, match=message):
        document.find_disks("qemu", text)


def test_variables_of_the_script_are_put_in() -> None:
    text = f'V=/srv; D=$V/a; O=\'-m 5 -vga  none\'; O="$O -usb"; E=\n{BEGIN} $O $E -hda "${{D}}.img" "$@" -k \'$D\'\n'
    words = ["-name", "shop", "-m", "512", "-m", "5", "-vga", "none", "-usb", "-hda", "/srv/a.img", "-k", "$D"]
    assert arguments(text) == words
    assert rendered(text, LV) == text.replace(
        '-hda "${D}.img"', '-drive "file=/dev/storkit/shop,format=raw,index=0,media=disk"'
    )
    with pytest.raises(UsageError, match="line 2: 'file=/a' is one of several words that a variable stands for"):
        rendered(f"O='-drive file=/a'\n{BEGIN} $O", LV)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-drive file=/a,format=luks,key-secret=s", "disk hda has luks there, and its volume is qcow2"),
        ("-blockdev driver=file,filename=/a,node-name=n", "disk n has no format there, and its volume is qcow2"),
    ],
)
def test_a_volume_of_a_format_that_a_command_has_no_word_for_is_refused(words: str, message: str) -> None:
    with pytest.raises(Unsupported, match=f"line 1: {message}"):
        rendered(f"{BEGIN} {words}", FILE)


def test_a_host_starts_it_in_the_background_and_can_speak_with_it() -> None:
    text = ("kvm -m 512 -nographic -S -daemonize -pidfile /x -incoming defer -serial mon:stdio -monitor stdio "
            "-sandbox on,spawn=deny,obsolete=deny -qmp stdio -chardev stdio,id=c,mux=on,signal=off "
            "-hda /a -D /log -display curses")  # fmt: skip
    made = render(guest(text), [LV], place=PLACE).splitlines()
    assert made == [
        *["-m", "512", "-display", "none", "-serial", "null", "-monitor", "none"],
        *["-sandbox", "on,obsolete=deny", "-chardev", "null,id=c,mux=on"],
        *["-drive", "file=/dev/storkit/shop,format=raw,index=0,media=disk", "-D", "/log", "-display", "none"],
        *f"-name guest=shop -uuid {UUID} -machine type=pc-i440fx-7.2 -accel kvm -m size=524296K".split(),
        *[
            "-chardev",
            "socket,id=storkit-qmp,path=/run/q,,1,server=on,wait=off",
            "-mon",
            "chardev=storkit-qmp,mode=control",
        ],
        *["-pidfile", "/run/p", "-daemonize"],
    ]
    from dataclasses import replace

    receiving = render(
        guest(f"{BEGIN} -uuid {UUID} -enable-kvm -m 513K"), [], place=replace(PLACE, incoming=True, accel="kvm")
    )
    assert receiving.split()[-5:] == ["/run/p", "-incoming", "defer", "-S", "-daemonize"]
    assert receiving.count("-uuid") == receiving.count("-name") == 1 and "size=" not in receiving


@pytest.mark.parametrize(
    ("text", "accelerator", "architecture"),
    [
        ("qemu-system-aarch64 -m 5", "tcg", "aarch64"),
        ("kvm -m 5", "kvm", ""),
        ("qemu-system-x86_64 -M q35,accel=kvm:tcg", "", "x86_64"),
        ("qemu-system-x86_64 -accel tcg,thread=multi", "tcg", "x86_64"),
        ("qemu-system-x86_64 -enable-kvm", "kvm", "x86_64"),
    ],
)
def test_what_a_guest_needs_of_a_host(text: str, accelerator: str, architecture: str) -> None:
    assert (launch.accelerator(text), launch.architecture(text)) == (accelerator, architecture)


def test_what_libvirt_lends_to_its_guests_alone_is_left_out() -> None:
    key = """-object '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/l/k.aes"}'"""
    lent = f"{key} -chardev socket,id=charmonitor,fd=21,server=on,wait=off -mon chardev=charmonitor,id=m,mode=control"
    text = f"{BEGIN} {lent} -chardev pty,id=c -mon c -k de"
    assert qemu.find_disks(text) == []
    words = launch.arguments(text, guest(text), PLACE)
    assert words[4:10] == ["-chardev", "pty,id=c", "-mon", "c", "-k", "de"]
    assert [disk.kind for disk in qemu.find_disks(f"{text} -object secret,id=x,keyid=masterKey0,file=/x")] == [
        "secret"
    ] * 2


def test_what_else_a_script_does_is_said() -> None:
    text = f"#!/bin/sh\nset -e\nip link set tap0 up\nmodprobe vhost_net || exit\n{BEGIN}\n"
    assert launch.warnings(text) == [
        "storkit starts QEMU alone, and not what else stands there (line 3: ip; line 4: modprobe)"
    ]


def test_a_clone_is_another_guest_and_like_it_in_all_else() -> None:
    text = (f"{BEGIN},debug-threads=on -uuid {UUID} -smbios type=1,uuid={UUID},serial=x -hda /a -device e1000,netdev=n,"
            "mac=52:54:00:00:00:01 -netdev user,id=n -device vmgenid,guid=11111111-2222-4333-8444-555555555556 "
            "-drive if=none,id=d,file=/b -device virtio-blk,drive=d,serial=abc # ours\n")  # fmt: skip
    made = clone.clone(guest(text), "till")
    same = made.document
    for own, old in ((made.uuid, UUID), ("till", "shop"), (derived_mac(made.uuid, 0), "52:54:00:00:00:01")):
        assert own in same
        same = same.replace(own, old)
    assert len([line for line in zip(same.split(), text.split(), strict=True) if line[0] != line[1]]) == 2
    assert "serial=abc" not in same and "555555555556" not in same and same.endswith("# ours\n")


@pytest.mark.parametrize(
    "words",
    [
        "-vnc :1", "-spice port=5900", "-gdb tcp::1", "-s", "-netdev tap,id=n,ifname=tap7",
        "-netdev user,id=n,hostfwd=tcp::22-:22",
                "-serial tcp::5,server", "-qmp unix:/run/q", "-chardev socket,id=c,path=/run/c",
        "-device vhost-vsock-pci,guest-cid=3",
        "-device vfio-pci,host=1", "-tpmdev emulator,id=t,chardev=c", "-monitor telnet:127.0.0.1:5,server",
    ],
)  # fmt: skip
def test_what_two_guests_cannot_have_both_is_refused_in_a_clone(words: str) -> None:
    text = f"qemu-kvm -name shop\nkvm -m 5 {words}".partition("\n")[2]
    original = guest(text, [disk.target for disk in qemu.find_disks(text)])
    with pytest.raises(Unsupported, match=r"line 1: .*two guests cannot have it both"):
        clone.clone(original, "till")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("-serial 'file:/log/shop.txt'", "-serial 'file:/log/till.txt'"),
        ("-qmp unix:/run/q,server,nowait", "-qmp unix:/run/till-q,server,nowait"),
        ("-monitor unix:/run/shop,wait=off,server=on", "-monitor unix:/run/till,wait=off,server=on"),
        ("-chardev socket,id=c,path=/run/shop/ga,server=on", "-chardev socket,id=c,path=/run/shop/till-ga,server=on"),
        ("-chardev file,path=/log,id=c", "-chardev file,path=/till-log,id=c"),
        ("-vnc :0 -vnc none -append shop",) * 2,
    ],
)  # fmt: skip
def test_a_clone_has_files_and_sockets_of_its_own(before: str, after: str) -> None:
    text = f"kvm -m 5 {before}"
    assert clone.clone(guest(text), "till").document == text.replace(before, after)


def test_a_record_keeps_its_command(tmp_path: Path) -> None:
    made = guest(f"#!/bin/sh\r\n{BEGIN} \\\r\n -hda /srv/a -smp 2\r\n")
    files.save(tmp_path, made)
    assert (tmp_path / "shop.sh").read_bytes() == made.document.encode()
    assert files.load(tmp_path, "shop") == made and (made.vcpus, made.memory) == (2, 512 << 20)


def test_another_hypervisor_has_the_disks_on_their_buses() -> None:
    disks = "-hda /a -drive file=/b,if=virtio -drive file=/c,if=none,id=d -device scsi-hd,drive=d"
    made = render(guest(f"{BEGIN} {disks}"), [LV, FILE, NBD], "libvirt")
    assert [
        f'dev="{name}" bus="{bus}"' in made for name, bus in (("hda", "ide"), ("vda", "virtio"), ("sda", "scsi"))
    ] == [True] * 3


def test_another_hypervisor_is_told_what_it_can_be_told() -> None:
    made = guest(f"{BEGIN} -uuid {UUID} -M pc -drive file=/a,format=raw,if=virtio")
    assert "<name>shop</name>" in render(made, [LV], "libvirt")
    with pytest.raises(Unsupported, match="-device sga"):
        render(guest(f"{BEGIN} -device sga -drive file=/a,if=virtio"), [LV], "libvirt")
    luks = "-blockdev driver=luks,key-secret=s,node-name=n,file.driver=file,file.filename=/a -device virtio-blk,drive=n"
    with pytest.raises(StorkitError, match="virtio-blk \\(luks\\)"):
        render(guest(f"{BEGIN} {luks}"), [LV], "libvirt")


words = st.lists(st.text(st.sampled_from(" ab$'\"\\,={}[]:/-#;&|()<>`\n\r\tx"), max_size=12), max_size=6)


@given(words)
def test_no_text_breaks_the_readers(noise: list[str]) -> None:
    text = " ".join(noise)
    for each in (text, f"{BEGIN} {text}", f"{BEGIN} -drive {text}", f"{BEGIN} -blockdev {text}", f"-hda\n{text}"):
        with suppress(StorkitError):
            for disk in document.find_disks("qemu", each):
                if disk.mapped:
                    qemu.with_sources(each, {disk.target: NBD})


@given(path=st.text(st.sampled_from("ab ,='\"\\$`é{}"), min_size=1, max_size=9), quote=st.sampled_from(["'", '"', ""]))
def test_a_path_of_any_letters_is_put_in_and_read_back(path: str, quote: str) -> None:
    source = DiskSource("file", f"/{path}")
    for text in (
        f"{BEGIN} -drive {quote}file=/old,format=raw{quote} -smp 1",
        f"""{BEGIN} -blockdev '{{"driver":"file","filename":"/old","node-name":"n"}}' -smp 1""",
        f"{BEGIN} -hda {quote}/old{quote} -smp 1",
    ):
        (disk,) = qemu.find_disks(text)
        new = qemu.with_sources(text, {disk.target: source})
        (again,) = qemu.find_disks(new)
        assert (again.target, again.place) == (disk.target, source.path) and new.endswith(" -smp 1")


@given(st.dictionaries(st.text("abc-", min_size=1), st.text(max_size=5), min_size=1))
def test_an_argument_is_taken_apart_as_it_was_put_together(values: dict[str, str]) -> None:
    argument = options.read(options.written("", values))
    assert {key.key: key.value for key in argument.parts} == values
    middle = argument.parts[-1]
    assert edited(argument.text, [Edit(middle.start, middle.end, "new")]).endswith("=new")


CASES = Path(__file__).parent / "data" / "guests"


@pytest.mark.parametrize("case", sorted(CASES.glob("2*.sh")) + sorted(CASES.glob("30*")), ids=lambda path: path.stem)
def test_commands_as_people_write_them(case: Path) -> None:
    with case.open(newline="") as file:
        text = file.read()
    assert parse.sniff(text) == "qemu"
    if case.stem.startswith("30"):
        with pytest.raises(UsageError, match="there are 2 commands"):
            qemu.find_disks(text)
        return
    with pytest.raises(StorkitError, match=r"line \d: disk .* is no volume"):
        document.adopted("qemu", text, {}, [], case.name)
    disks = qemu.find_disks(text)
    by_place = {disk.place: f"v{number}" for number, disk in enumerate(disks) if disk.mapped}
    assert by_place and len(document.adopted("qemu", text, by_place, [d.target for d in disks if not d.mapped], "f")[0])
    made = guest(text, [disk.target for disk in disks if not disk.mapped])
    new = render(made, [DiskSource("block", f"/dev/storkit/{disk.volume}") for disk in made.disks])
    for disk in disks:
        assert (disk.place in new) != disk.mapped
    kept = [word for word in arguments(text) if not any(disk.place in word for disk in disks)]
    assert [word for word in kept if word not in arguments(new)] in ([], ["-hda", "-hdb"])
    assert made.vcpus == {"20-continued": 2, "27-smp": 4}.get(case.stem, 1)


@pytest.mark.parametrize(
    "text",
    [
        "x='a b'\n" + BEGIN + " $x" * 150000,
        "x=a" + "$x" * 300000 + "\n" + BEGIN,
        BEGIN + "$(" * 300000,
        BEGIN + ' "' + '\\"' * 300000,
        BEGIN + ">a " * 200000,
        BEGIN + " -chardev socket,id=a,fd=1" + " -mon a" * 100000,
        BEGIN + " -blockdev " + ",".join(f"a{number}=b" for number in range(90000)),
        BEGIN + " -blockdev driver=quorum" + "".join(f",children.{number}.filename=/a" for number in range(500)),
        BEGIN + " -blockdev '" + '{"a":' * 150000 + "'",
        "a\n" * 300000 + BEGIN,
        "-S\n" * 250000,
    ],
    ids=lambda text: text[:9] + text[40:60],
)  # fmt: skip
def test_a_large_text_comes_to_an_end(text: str) -> None:
    start = time.process_time()
    with suppress(StorkitError):
        document.adopted("qemu", text, {}, [], "f")
    assert time.process_time() - start < scaled(20)
