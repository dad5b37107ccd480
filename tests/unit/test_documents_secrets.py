"""Passwords of documents: kept apart from them, and put in again only where nobody else reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storkit.core import codec
from storkit.core.errors import Conflict, StorkitError, UsageError
from storkit.core.guest import Guest
from storkit.core.model import Secret
from storkit.guests import document, secrets
from storkit.guests.documents import launch
from storkit.guests.place import Place

UUID = "11111111-2222-4333-8444-555555555555"
GRAPHICS = "<domain><name>shop</name><memory>65536</memory><devices>{}</devices></domain>"
PASSWORD = "a\"b'c<&\\,d"
KEPT = {"storkit-secret-1": Secret(PASSWORD)}


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("libvirt", GRAPHICS.format("<graphics type='vnc' passwd='a\"b&apos;c&lt;&amp;\\,d' port='-1'/>"),
         GRAPHICS.format("<graphics type='vnc' passwd='storkit-secret-1' port='-1'/>")),
        ("xl", 'name = "shop"\nvncpasswd = \'a"b\\\'c<&\\\\,d\' # ours\n',
         'name = "shop"\nvncpasswd = \'storkit-secret-1\' # ours\n'),
        ("qemu", "qemu-system-x86_64 -object 'secret,id=s,data=a\"b'\\''c<&\\,,d,format=raw'",
         "qemu-system-x86_64 -object secret,id=s,data=storkit-secret-1,format=raw"),
        ("qemu", "kvm -spice port=5,password=\"a\\\"b'c<&\\\\,,d\"", 'kvm -spice port=5,password="storkit-secret-1"'),
        ("qemu", """kvm -object '{"qom-type":"secret","id":"s","data":"a\\"b'"'"'c<&\\\\,d"}'""",
         """kvm -object '{"qom-type":"secret","id":"s","data":"storkit-secret-1"}'"""),
    ],
)  # fmt: skip
def test_a_password_is_taken_out_and_put_in_again(kind: str, before: str, after: str) -> None:
    text, found = document.apart(kind, before)
    assert found == KEPT and document.apart(kind, text) == (text, {})
    if '"data"' not in before:
        assert text == after
    guest = Guest("shop", UUID, 0, hypervisor=kind, document=text)
    assert document.needed(guest) == ["storkit-secret-1"] and not document.problems(guest)
    again = document.with_secrets(kind, text, found)
    assert document.apart(kind, again) == (text, found)
    assert "storkit-secret" not in again and document.with_secrets(kind, text, {}) == text


def test_each_password_has_a_name_of_its_own() -> None:
    text = (
        'name = "a"\nvncpasswd = "one"\nspicepasswd = "storkit-secret-1"\nvfb = [ "vnc=1,vncpasswd=two,vncunused=1" ]\n'
    )
    new, found = document.apart("xl", text)
    assert found == {"storkit-secret-2": Secret("one"), "storkit-secret-3": Secret("two")}
    assert new == text.replace('"one"', '"storkit-secret-2"').replace("=two,", "=storkit-secret-3,")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("xl", 'name = "shop"\ndevice_model_args = [ "-object", "secret,id=s,data=sesame" ]\n'),
        ("qemu", "qemu-system-x86_64 \\\n -blockdev driver=x,password=sesame"),
    ],
)
def test_what_everybody_would_see_in_a_process_is_refused(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match="line 2: a password stands in the document") as caught:
        document.apart(kind, text)
    assert "sesame" not in str(caught.value) + caught.value.hint


def test_a_process_of_qemus_reads_them_from_files() -> None:
    text = ("kvm -name shop -m 5 -object secret,id=s,data=storkit-secret-1,format=base64 "
            "-spice port=5,password=storkit-secret-2,tls-port=6")  # fmt: skip
    words = launch.arguments(text, Guest("shop", UUID, 0, document=text), Place(machine="pc", secrets="/state,x"))
    assert words[4:10] == [
        "-object", "secret,id=s,file=/state,,x/storkit-secret-1,format=base64",
        "-object", "secret,id=storkit-secret-2,file=/state,,x/storkit-secret-2",
        "-spice", "port=5,password-secret=storkit-secret-2,tls-port=6",
    ]  # fmt: skip
    word = '{"qom-type":"secret","id":"s","data":"storkit-secret-1"}'
    made = launch.arguments(f"kvm -object '{word}'", Guest("shop", UUID, 0), Place(machine="pc", secrets="/s"))
    assert json.loads(made[1]) == {"qom-type": "secret", "id": "s", "file": "/s/storkit-secret-1"}


def test_they_are_kept_where_only_their_owner_reads_them(tmp_path: Path) -> None:
    text, found = document.apart("libvirt", GRAPHICS.format("<graphics type='vnc' passwd='sesame'/>"))
    guest = Guest("shop", UUID, 0, hypervisor="libvirt", document=text)
    with pytest.raises(Conflict, match="passwords that are not on this machine: storkit-secret-1"):
        secrets.load(tmp_path, guest)
    secrets.keep(tmp_path, UUID, found)
    (file,) = (tmp_path / "secrets").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert secrets.load(tmp_path, guest) == found and "sesame" not in str(codec.dump(found))
    assert secrets.load(tmp_path, Guest("other", UUID, 0)) == {}
    secrets.forget(tmp_path, UUID)
    secrets.forget(tmp_path, UUID)
    with pytest.raises(StorkitError):
        secrets.load(tmp_path, guest)
