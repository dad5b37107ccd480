"""What another host says names nothing until it was looked at: UUIDs, names, clients, paths, sizes."""

from __future__ import annotations

import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from storkit.core import calls, codec, registry
from storkit.core.backend import Transport
from storkit.core.errors import StorkitError, UsageError
from storkit.core.guest import Guest
from storkit.core.identities import CONTROL
from storkit.core.model import Attachment, Client, DiskSource, Evidence, Export, GuestState, Offer, Secret, Volume
from storkit.hosts.setup import Setup
from storkit.hosts.site import Performer, site
from storkit.tech.files.sidecar import Sidecar
from storkit.tech.iscsi.names import IscsiGrant
from storkit.tech.nbd.names import NbdGrant
from storkit.tech.nfs.names import NfsGrant
from storkit.tech.records import RecordFiles

UUID = "7d1c9f6e-30a5-4c0b-9d3b-6a1f0d6f8c11"

VOLUME = {"name": "web", "uuid": UUID, "size": 4096, "pool": "default", "host": "a", "path": "/p/web.raw"}
OFFER = {
    "volume": "web", "uuid": UUID, "size": 4096, "client": "b", "transport": "nfs", "name": "/p/.exports/x",
    "identity": f"storkit:{UUID}:1", "writable": False, "server": "10.0.0.1", "port": 2049, "socket": "/run/x",
    "path": "/dev/vg/web", "portals": ["10.0.0.1:3260", "[fe80::1]"], "options": {"file": "web.raw"},
    "credential": {"method": "chap", "user": "u", "secret": "s"},
}  # fmt: skip
EXPORT = {"volume": "web", "uuid": UUID, "client": "guest:g", "writable": True, "transport": "nbd", "live": True}
SOURCE = {"kind": "network", "protocol": "nbd", "export": "web@b+1", "socket": "/run/s", "server": "h", "port": 1}
ATTACHMENT = {
    "volume": "web", "uuid": UUID, "host": "local:/tmp/b", "transport": "nbd", "path": "/dev/storkit/web",
    "source": SOURCE, "size": 4096, "writable": True,
}  # fmt: skip
EVIDENCE = {"volume": "web", "host": "b", "identity": "x", "size": 4096, "blocks": {"0": "ab"}, "key": "0f", "keys": []}
STATE = {
    "name": "g", "uuid": UUID, "host": "b", "hypervisor": "qemu", "status": "running", "machine": "pc-q35-7.2",
    "volumes": {UUID: "web"},
}  # fmt: skip
GRANT = {"volume": VOLUME, "clients": {"b": {"same_machine": True}}, "writers": ["b"]}
NFS = {"volume": VOLUME, "clients": {"b": {"addresses": ["10.0.0.2"], "nonce": "0" * 32}}, "writers": ["b"]}
GUEST = {"name": "g", "uuid": UUID, "memory": 1 << 24, "disks": [{"volume": "web", "uuid": UUID}]}

RECORDS: dict[type, dict[str, Any]] = {
    Volume: VOLUME, Offer: OFFER, Export: EXPORT, DiskSource: SOURCE, Attachment: ATTACHMENT, Evidence: EVIDENCE,
    GuestState: STATE, NbdGrant: GRANT, IscsiGrant: GRANT, NfsGrant: NFS, Guest: GUEST,
    Sidecar: {"version": 1, "volume": {**VOLUME, "pool": "", "host": "", "path": ""}},
    Client: {"name": "b", "same_machine": False},
}  # fmt: skip

BAD_UUIDS = [
    "",
    "x",
    "/etc",
    "../../etc",
    UUID.upper(),
    f"{UUID}\n",
    UUID + "/..",
    f"{{{UUID}}}",
    UUID.replace("-", ""),
]
BAD_NAMES = ["", "..", "/etc", "a/b", "a\n", "-a", "a\x1b[2J", "x" * 64]
BAD_PATHS = ["relative", "/a/../etc", "/a\nb", "/a\x1b", "/\u202e", "/a\0b"]
BAD_HOSTS = [
    *BAD_NAMES,
    "local:relative",
    "local:/",
    "local:/..//.",
    "local:/a/../b",
    "ssh://-oProxyCommand=x",
    "ssh://h/path",
    "http://h",
    "a:b",
    "local:/a\nb",
]
BAD_CLIENTS = [*BAD_HOSTS, "guest:", "guest:../x", "guest:local:/x"]
BAD_LINES = ["a\nnext: rm -rf /", "a\r", "\x1b[2J", "\x9b", "\u202e", "\u2066", "\u2028", "\ud800"]
BAD_WORDS = ["-a", "a,b=c", "a b", "a/b", "a\n"]
BAD_SIZES = [-1, 2**63, 10**400, True, 1.5, "1"]
BAD_PORTS = [-1, 65536, 10**400]

CASES = [
    (Volume, "uuid", BAD_UUIDS), (Volume, "name", BAD_NAMES), (Volume, "path", BAD_PATHS), (Volume, "size", BAD_SIZES),
    (Volume, "host", BAD_HOSTS[1:]), (Volume, "pool", BAD_NAMES[1:]), (Volume, "origin", BAD_UUIDS[1:]),
    (Volume, "format", BAD_WORDS), (Volume, "made", BAD_LINES), (Volume, "created", BAD_LINES),
    (Offer, "uuid", BAD_UUIDS), (Offer, "volume", BAD_NAMES), (Offer, "client", BAD_CLIENTS),
    (Offer, "size", BAD_SIZES),
    (Offer, "name", BAD_LINES), (Offer, "identity", BAD_LINES), (Offer, "socket", BAD_PATHS),
    (Offer, "path", BAD_PATHS),
    (Offer, "server", ["-o", "a b", "a\n", "a,b", "..", "/x"]), (Offer, "port", BAD_PORTS),
    (Offer, "portals", [["-p"], ["a b"], ["a:b"], ["a\n"], ["/x"], [""]]), (Offer, "transport", BAD_WORDS),
    (Offer, "options", [{"file": "a\n"}, {"a/b": "x"}, {"a\n": "x"}]),
    (Offer, "credential", [{"method": "psk", "secret": "a\nb"}, {"method": "psk", "user": "a\nb"},
                           {"method": "x509", "files": {"../x": "y"}}]),
    (Export, "uuid", BAD_UUIDS), (Export, "volume", BAD_NAMES), (Export, "client", BAD_CLIENTS),
    (Export, "endpoint", BAD_LINES), (Export, "transport", BAD_WORDS),
    (DiskSource, "path", BAD_PATHS), (DiskSource, "socket", BAD_PATHS), (DiskSource, "server", ["-o", "a b", "a,b=c"]),
    (DiskSource, "port", BAD_PORTS), (DiskSource, "export", BAD_LINES), (DiskSource, "tls_dir", BAD_PATHS),
    (DiskSource, "tls_user", BAD_WORDS), (DiskSource, "format", BAD_WORDS), (DiskSource, "protocol", BAD_WORDS),
    (Attachment, "uuid", BAD_UUIDS), (Attachment, "volume", BAD_NAMES), (Attachment, "host", BAD_HOSTS),
    (Attachment, "path", BAD_PATHS), (Attachment, "size", BAD_SIZES),
    (Evidence, "volume", BAD_NAMES), (Evidence, "host", BAD_HOSTS), (Evidence, "identity", BAD_LINES),
    (Evidence, "blocks", [{"x": "ab"}, {"-1": "ab"}, {"0": "a b"}, {"0": "a\n"}]), (Evidence, "key", ["x", "0\n"]),
    (GuestState, "name", BAD_NAMES), (GuestState, "uuid", BAD_UUIDS), (GuestState, "host", BAD_HOSTS),
    (GuestState, "machine", ["pc,accel=x", "-x", "a b"]), (GuestState, "volumes", [{"x": "web"}, {UUID: "../web"}]),
    (NbdGrant, "clients", [{name: {"same_machine": True}} for name in BAD_CLIENTS]),
    (NbdGrant, "writers", [[name] for name in BAD_CLIENTS]),
    (IscsiGrant, "clients", [{name: {"same_machine": True}} for name in BAD_CLIENTS]),
    (NfsGrant, "clients", [{"b": {"addresses": [], "nonce": nonce}} for nonce in ["a/b", "../x"]]),
    (Guest, "name", BAD_NAMES), (Guest, "uuid", BAD_UUIDS), (Guest, "machine", ["pc,accel=x"]),
    (Guest, "disks", [[{"volume": name}] for name in BAD_NAMES] + [[{"volume": "web", "uuid": "x"}]]),
    (Sidecar, "volume", [{**VOLUME, "uuid": uuid} for uuid in BAD_UUIDS]), (Client, "name", BAD_CLIENTS),
]  # fmt: skip


@pytest.mark.parametrize(("record", "good"), RECORDS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_good_identities_pass(record: type, good: dict[str, Any]) -> None:
    assert codec.load(record, good)


@pytest.mark.parametrize(
    ("record", "field", "bad"), CASES, ids=lambda value: getattr(value, "__name__", str(value)[:20])
)
def test_bad_identities_are_refused_and_named_in_plain_text(record: type, field: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(StorkitError) as caught:
            codec.load(record, {**RECORDS[record], field: value}, "host b")
        for problem in caught.value.each:
            assert f"host b: {field}" in problem.message and not CONTROL.search(problem.message), value


def test_a_secret_is_never_shown_and_never_two_lines() -> None:
    with pytest.raises(UsageError) as caught:
        codec.load(Offer, {**OFFER, "credential": {"method": "psk", "secret": "hunter2\nroot"}})
    assert "hunter2" not in caught.value.message


def texts(hint: Any) -> bool:
    """Whether a value of this type may be any text at all."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated or hint is Secret:
        return False
    if is_dataclass(hint):
        return any(texts(each) for each in typing.get_type_hints(hint, include_extras=True).values())
    return hint is str or any(texts(arg) for arg in args)


def test_no_verb_takes_or_gives_a_name_that_nobody_looks_at() -> None:
    """Every argument and result of the contracts, and every field of their records."""
    loose = []
    for kind in calls.CONTRACTS:
        for name in calls.verbs(kind):
            verb = calls.verb(kind, name)
            assert verb is not None
            loose += [f"{kind}.{name}: {each}" for each, hint in verb.arguments.items() if texts(hint)]
            loose += [f"{kind}.{name}"] if texts(verb.result) else []
    assert loose == []


@pytest.mark.parametrize("name", registry.names(Transport))  # type: ignore[type-abstract]
@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("detach", {"volumes": [{**VOLUME, "uuid": "/etc"}]}),
        ("attach", {"offers": [{**OFFER, "uuid": "/etc"}]}),
        ("find_exports", {"volumes": ["../x"]}),
        ("find_attachments", {"volumes": ["../x"]}),
        ("fence", {"client": "../x"}),
        ("unexport", {"volumes": [VOLUME], "clients": ["\x1b"]}),
    ],
)
def test_a_host_looks_at_what_it_is_told_before_it_acts(
    name: str, verb: str, args: dict[str, Any], tmp_path: Path
) -> None:
    given = Setup("b", state=str(tmp_path / "b"))
    before = sorted(Path("/etc").iterdir())
    with pytest.raises(UsageError):
        Performer(given, site(given)).perform(f"transport:{name}", verb, args)
    assert sorted(Path("/etc").iterdir()) == before
    assert not [path for path in (tmp_path / "b").rglob("*") if path.is_file()]


def test_records_are_files_of_uuids_and_of_nothing_else(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path / "records", Volume, "the record")
    for uuid in BAD_UUIDS:
        with pytest.raises(UsageError):
            files.path(uuid)
        with pytest.raises(UsageError):
            files.forget([uuid])
