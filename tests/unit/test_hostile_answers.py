"""Every answer of every verb, with each of its values wrong: none is believed, and none is a traceback.

A new verb of a contract needs an example here, a new record's fields are found by themselves.
"""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest

from storkit.core import calls
from storkit.core.identities import CONTROL
from storkit.hosts.remote import answers, asked
from storkit.hosts.remote.wire import Malformed
from tests.hostile import other, wrong

UUID = "7d1c9f6e-30a5-4c0b-9d3b-6a1f0d6f8c11"
VOLUME = {
    "name": "web", "uuid": UUID, "size": 4096, "pool": "p", "host": "h", "kind": "disk", "format": "raw",
    "path": "/p/web.raw", "origin": "", "made": "created", "created": "2026-11-28T00:00:00Z",
}  # fmt: skip
EXPORT = {
    "volume": "web",
    "uuid": UUID,
    "client": "c",
    "writable": True,
    "transport": "t",
    "live": True,
    "endpoint": "",
}
OFFER = {
    "volume": "web", "uuid": UUID, "size": 4096, "client": "c", "transport": "t", "name": "web@c", "identity": "x",
    "writable": False, "server": "10.0.0.1", "port": 1, "portals": ["10.0.0.1:3260"], "options": {"file": "web.raw"},
    "socket": "", "path": "", "credential": {"method": "psk", "user": "u", "secret": "s", "files": {}},
}  # fmt: skip
ATTACHMENT = {
    "volume": "web", "uuid": UUID, "host": "h", "transport": "t", "path": "/dev/storkit/web", "size": 4096,
    "writable": True, "source": {"kind": "block", "path": "/dev/storkit/web", "server": "", "port": 0},
}  # fmt: skip
SOURCE = {"kind": "network", "protocol": "nbd", "export": "web@c", "server": "10.0.0.1", "port": 1}
STATE = {"name": "g", "uuid": UUID, "host": "h", "hypervisor": "q", "status": "running", "pid": 1, "machine": "pc",
         "migration": "", "volumes": {UUID: "web"}}  # fmt: skip
SAVED = {
    "guest": UUID, "name": "g", "hold": UUID, "generations": {UUID: 1}, "hypervisor": "q", "machine": "pc",
    "fingerprint": {"x": "y"}, "paused": False, "since": "", "version": "", "file": "/m", "size": 9, "used": False,
}  # fmt: skip
USAGE = {"pool": "p", "host": "h", "total": 9, "free": 9, "provisioned": 0, "allocated": 0, "warnings": ["full"]}
EVIDENCE = {
    "volume": "web",
    "host": "h",
    "identity": "x",
    "size": 4096,
    "blocks": {"0": "ab"},
    "key": "0f",
    "keys": ["0f"],
}
KEPT = {
    "volume": "web", "uuid": UUID, "name": "g", "guest": UUID, "generation": 3, "hypervisor": "libvirt", "record": "x",
    "document": "<domain/>", "gone": False, "by": "ann@desk", "since": "2026-11-28T00:00:00Z", "digest": "ab",
}  # fmt: skip
DAMAGED = {"name": "db", "pool": "p", "host": "h", "message": "m", "hint": "h"}
RESULT = {"total_ms": 1, "downtime_ms": 1, "setup_ms": 1, "transferred": 1}
FOUND = {"place": "/srv/web.img", "format": "", "in_guest": False, "processes": [1]}
ADOPTABLE = {"place": "/srv/web.img", "name": "web", "size": 4096, "format": "raw", "moved": True}
HELD = {
    **VOLUME,
    "hold": {"guest": UUID, "name": "g", "id": UUID, "generation": 1, "since": "", "host": "h", "file": ""},
}
ONE: dict[str, Any] = {"volumes": [VOLUME]}
FINDING = {"message": "no room", "hint": "df -h"}
INFO = {
    "source": "/i",
    "format": "qcow2",
    "compression": "",
    "file_size": 1,
    "virtual_size": 512,
    "required": 512,
}
DECLARED = {"host": "c", "by": "ann@desk", "since": "2026-11-28 00:00:00 UTC", "keepers": ["h"]}
DRAINED = {"by": "ann@desk", "since": "2026-11-28 00:00:00 UTC"}
CLIENT = {"name": "c", "same_machine": False, "address": ""}

TRUE: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {
    ("pool", "ready"): ({}, [FINDING]),
    ("transport", "ready"): ({"serves": True, "attaches": False}, [FINDING]),
    ("transport", "doors"): ({}, [{"address": "10.0.0.1", "port": 10809, "last": 11808}]),
    ("hypervisor", "ready"): ({}, [FINDING]),
    ("pool", "look"): (
        {"names": ["web", "db"]},
        {"volumes": [VOLUME], "damaged": [DAMAGED], "directory": UUID, "barred": ["b"]},
    ),
    ("pool", "find"): ({"names": ["web"]}, [VOLUME]),
    ("pool", "create"): (ONE, [VOLUME]),
    ("pool", "import_tree"): ({**ONE, "source": "/x"}, [VOLUME]),
    ("pool", "clone"): ({**ONE, "source": VOLUME}, [VOLUME]),
    ("pool", "snapshot"): ({**ONE, "source": VOLUME}, [VOLUME]),
    ("pool", "resize"): (ONE, [VOLUME]),
    ("pool", "rename"): ({**ONE, "names": ["web"]}, [VOLUME]),
    ("pool", "flatten"): (ONE, [VOLUME]),
    ("pool", "relabel"): (ONE, [VOLUME]),
    ("pool", "hold"): ({"volumes": [HELD]}, [HELD]),
    ("pool", "release"): ({"volumes": [HELD], "hold": UUID}, [{**HELD, "hold": None}]),
    ("images", "digest"): ({"volume": VOLUME}, "blocks-sha256:00"),
    ("pool", "adoptable"): ({"found": [FOUND]}, [ADOPTABLE]),
    ("pool", "adopt"): ({**ONE, "found": [FOUND]}, [VOLUME]),
    ("pool", "disown"): (ONE, ["/p/web.raw"]),
    ("pool", "capacity"): ({}, USAGE),
    ("pool", "kept"): ({"volumes": [UUID]}, {"guests": [KEPT], "damaged": [FINDING]}),
    ("pool", "texts"): ({"volumes": [UUID], "generation": 3}, [KEPT]),
    ("transport", "export"): ({**ONE, "clients": [CLIENT]}, [EXPORT]),
    ("transport", "take_over"): (ONE, [EXPORT]),
    ("transport", "find_exports"): ({"volumes": [UUID]}, [EXPORT]),
    ("transport", "look_exports"): ({"volumes": [UUID]}, {"exports": [EXPORT], "damaged": [FINDING]}),
    ("transport", "look_attachments"): ({"volumes": [UUID]}, {"attachments": [ATTACHMENT], "damaged": [FINDING]}),
    ("transport", "offers"): ({**ONE, "client": "c"}, [OFFER]),
    ("transport", "attach"): ({"offers": [OFFER]}, [ATTACHMENT]),
    ("transport", "find_attachments"): ({"volumes": [UUID]}, [ATTACHMENT]),
    ("transport", "evidence"): ({**ONE, "offsets": [0]}, [EVIDENCE]),
    ("transport", "sources"): ({"offers": [OFFER]}, [SOURCE]),
    ("transport", "digests"): (
        {"volume": VOLUME, "client": "c", "offset": 0, "length": 8192, "block": 4096},
        ["00"],
    ),
    ("transport", "fence"): ({"client": "c"}, [EXPORT]),
    ("transport", "restore"): ({}, [EXPORT]),
    ("hypervisor", "find"): ({"guests": ["g"]}, [STATE]),
    ("hypervisor", "start"): ({"name": "g"}, STATE),
    ("hypervisor", "wake"): ({"name": "g"}, STATE),
    ("hypervisor", "receive"): ({"name": "g", "same_machine": False}, "tcp:10.0.0.1:49152"),
    ("hypervisor", "check"): ({"guest": {}}, ["no room"]),
    ("hypervisor", "fingerprint"): ({"guest": {}}, {"qemu": "7.2"}),
    ("hypervisor", "define"): ({}, "/run/g.xml"),
    ("hypervisor", "strangers"): ({}, ["web"]),
    ("hypervisor", "originals"): (
        {"names": ["g"]},
        [{"name": "g", "document": "<domain/>", "status": "stopped", "secrets": {"storkit-secret-1": "x"}}],
    ),
    ("hypervisor", "edited"): (
        {"name": "g"},
        [{"name": "g", "document": "<domain/>", "status": "running", "secrets": {"storkit-secret-1": "x"}}],
    ),
    ("hypervisor", "take"): ({}, ["/run/g.xml"]),
    ("hypervisor", "credential"): ({"name": "g"}, OFFER["credential"]),
    ("hypervisor", "send"): ({"name": "g", "uri": "x"}, RESULT),
    ("hypervisor", "save"): ({"name": "g", "saved": SAVED}, SAVED),
    ("hypervisor", "saved"): ({"name": "g"}, SAVED),
    ("hypervisor", "messages"): ({"name": "g"}, "said\nmore"),
    ("images", "inspect"): ({"source": "/i"}, INFO),
    ("images", "fill"): ({"volume": VOLUME, "source": "/i"}, INFO),
    ("images", "export_image"): ({"volume": VOLUME, "file": "/web.qcow2"}, {"file": "/web.qcow2", "size": 4096}),
    ("images", "examine"): ({"volume": VOLUME}, {"checksum": "sha256:00", "damage": ["truncated"]}),
    ("images", "look_inside"): (
        {"volume": VOLUME},
        {"filesystem": "ext4", "offset": 0, "has": ["sshd"], "problem": ""},
    ),
    ("images", "lay"): (
        {"volume": VOLUME, "inside": {}, "files": [{"path": "/etc/hostname", "content": "xxxx", "slot": True}]},
        [{"path": "/etc/hostname", "size": 4, "extents": [{"offset": 1024, "length": 4}]}],
    ),
    ("hypervisor", "grow"): ({"name": "g", "disk": VOLUME["uuid"], "size": 8192}, True),
    ("hypervisor", "mirrored"): ({"disk": VOLUME["uuid"]}, "copying"),
    ("hypervisor", "switch"): ({"name": "g", "disk": VOLUME["uuid"]}, {"stall_ms": 12}),
    ("hypervisor", "pause"): ({"name": "g"}, STATE),
    ("hypervisor", "console"): ({"name": "g"}, {"kind": "socket", "words": ["/run/g/console"]}),
    ("hypervisor", "forwarded"): ({"guests": ["g"]}, {"g": 40001}),
    ("hypervisor", "execute"): (
        {"name": "g", "words": ["true"]},
        {"name": "g", "status": 0, "signal": 0, "stdout": "aGk=", "stderr": "", "cut": ["stdout"]},
    ),
    ("hypervisor", "cards"): (
        {"guests": ["g"]},
        {"g": [{"device": "eth0", "mac": "52:54:00:12:34:56", "addresses": ["10.0.2.15"]}]},
    ),
    ("hypervisor", "freeze"): ({"name": "g"}, {"name": "g", "systems": 1, "why": "x"}),
    ("hypervisor", "thaw"): ({"name": "g"}, {"name": "g", "systems": 1, "why": "x"}),
    ("host", "declare_off"): ({"client": "c", "by": "ann", "keepers": ["h"]}, DECLARED),
    ("host", "find_off"): ({}, [DECLARED]),
    ("host", "drain"): ({"by": "ann"}, DRAINED),
    ("host", "find_drained"): ({}, [DRAINED]),
}
"""A question and a true answer, for each verb that has one."""

TARGETS = {
    "pool": "pool:p",
    "transport": "transport:t",
    "hypervisor": "hypervisor:q",
    "images": "images",
    "host": "host",
}
FREE = {
    # Which of its clients and guests there are, only the host knows, and of what size its disks are.
    "find_exports": {"client", "volume"}, "look_exports": {"client", "volume"}, "look_attachments": {"size"},
    "export": {"volume"}, "take_over": {"client", "volume"}, "fence": {"uuid", "volume"},
    "restore": {"uuid", "client", "volume"}, "find_attachments": {"size"}, "evidence": {"size"},
    "find": {"size", "uuid"}, "look": {"size", "uuid"}, "start": {"uuid"}, "wake": {"uuid"}, "pause": {"uuid"},
    "offers": {"name"},
    "create": {"size"}, "import_tree": {"size"}, "clone": {"size"}, "snapshot": {"size"}, "resize": {"size"},
    "rename": {"size"}, "relabel": {"size"}, "flatten": {"size"}, "hold": {"size"}, "release": {"size"},
    "save": {"size"}, "saved": {"size"},
    "export_image": {"size"}, "find_off": {"host"}, "kept": {"volume", "name", "hypervisor"},
    "adoptable": {"name", "size"}, "adopt": {"size"},
    "texts": {"volume", "name", "hypervisor"},
}  # fmt: skip
"""Fields in which a well-formed answer can be anything."""


def checked(kind: str, verb: str, args: dict[str, Any], answer: Any) -> Any:
    return asked.compared("h", TARGETS[kind], verb, args, answers.checked(TARGETS[kind], verb, answer))


def returned(kind: str, verb: str) -> Any:
    declared = calls.verb(kind, verb)
    assert declared is not None
    return declared.result


def places(hint: Any, value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The places in a value of this type that have a type of their own in `wrong`."""
    if hint in wrong:
        yield path, hint
        return
    origin, params = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union) and value is not None:
        yield from places(params[0], value, path)
    elif origin is list:
        for number, each in enumerate(value):
            yield from places(params[0], each, (*path, number))
    elif origin is dict:
        for key, each in value.items():
            yield from places(params[1], each, (*path, key))
    elif is_dataclass(hint):
        for key, field in typing.get_type_hints(hint, include_extras=True).items():
            if key in value:
                yield from places(field, value[key], (*path, key))


def put(answer: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    answer = copy.deepcopy(answer)
    place = answer
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return answer


@pytest.mark.parametrize(("kind", "verb"), TRUE, ids="-".join)
def test_the_truth_is_believed(kind: str, verb: str) -> None:
    args, answer = TRUE[kind, verb]
    assert checked(kind, verb, args, answer) is not None


@pytest.mark.parametrize(("kind", "verb"), TRUE, ids="-".join)
def test_a_value_of_the_wrong_kind_is_not(kind: str, verb: str) -> None:
    args, answer = TRUE[kind, verb]
    found = list(places(returned(kind, verb), answer))
    for path, hint in found:
        for value in wrong[hint]:
            with pytest.raises(Malformed) as caught:
                checked(kind, verb, args, put(answer, path, value))
            assert not CONTROL.search(str(caught.value)), (path, value)
    for value in (5, "x\n", {"volumes": 1}, [1], [None], [[]], [{}], {"x": []}, True):
        if value is True and returned(kind, verb) is bool:
            continue
        if (kind, verb) not in {("hypervisor", "messages"), ("hypervisor", "fingerprint"), ("hypervisor", "check")}:
            with pytest.raises(Malformed):
                checked(kind, verb, args, value)


@pytest.mark.parametrize(("kind", "verb"), TRUE, ids="-".join)
def test_an_answer_to_another_question_is_not(kind: str, verb: str) -> None:
    args, answer = TRUE[kind, verb]
    for path, _ in places(returned(kind, verb), answer):
        key = path[-1] if path else ""
        if key in other and key not in FREE.get(verb, ()) and "source" not in path and "credential" not in path:
            with pytest.raises(Malformed, match=r"asked for|for volume"):
                checked(kind, verb, args, put(answer, path, other[key]))


@pytest.mark.parametrize("verb", ["create", "clone", "offers", "attach", "evidence"])
def test_nothing_is_left_out_and_nothing_is_said_twice(verb: str) -> None:
    kind = "pool" if verb in ("create", "clone") else "transport"
    args, answer = TRUE[kind, verb]
    few_and_many: tuple[list[Any], ...] = ([], answer * 2)
    for records in few_and_many:
        with pytest.raises(Malformed, match="records, where 1 were asked for"):
            checked(kind, verb, args, records)


def test_a_guest_is_sent_to_no_socket_of_this_machine_by_another() -> None:
    args: dict[str, Any] = {"name": "g", "same_machine": False}
    with pytest.raises(Malformed):
        checked("hypervisor", "receive", args, "unix:/run/docker.sock")
    assert checked("hypervisor", "receive", {**args, "same_machine": True}, "unix:/run/x") == "unix:/run/x"


def test_every_verb_that_answers_is_compared() -> None:
    for kind in TARGETS:
        for verb in calls.verbs(kind):
            if returned(kind, verb) is not type(None):
                assert (kind, verb) in TRUE, f"{kind}.{verb}"
                assert ((kind, verb) in asked.COMPARED) != ((kind, verb) in asked.WORDS), f"{kind}.{verb}"


ITSELF: dict[str, Any] = {
    "lock": {"given_up": ["20261128-230641-30800"], "epoch": 7},
    "epoch": 7,
    "marked": True,
    "facts": {
        "version": "0.1.0", "kernel": "6.1.0", "clock": 1.5, "python": "3.11.2", "root": True, "state": "/var/s",
        "missing": [{"backend": "nbd", "needs": "qemu-storage-daemon", "package": "qemu-utils"}],
        "refused": [{"kind": "not-allowed", "message": "no", "hint": ""}], "findings": [FINDING],
    },
    "source": "10.0.0.1",
    "neighbours": [{"mac": "52:54:00:00:00:01", "address": "10.0.0.1", "seen": "lease"}],
    "listen": {"doors": [{"address": "10.0.0.1", "port": 1, "last": 2}], "findings": [FINDING]},
    "reach": "no answer",
    "unlock": None, "mark": None, "unmark": None, "unlisten": None,
}  # fmt: skip
"""A true answer to each request to a host itself."""


def test_every_request_to_a_host_itself_has_an_answer_here() -> None:
    assert calls.verbs("agent") == ITSELF.keys()


@pytest.mark.parametrize("verb", ITSELF)
def test_a_host_that_says_something_else_of_itself_is_not_believed(verb: str) -> None:
    answers.checked("agent", verb, ITSELF[verb])
    for path, hint in places(returned("agent", verb), ITSELF[verb]):
        for value in wrong[hint]:
            with pytest.raises(Malformed):
                answers.checked("agent", verb, put(ITSELF[verb], path, value))
    for value in ([1], [None], {"x": []}, -1):
        with pytest.raises(Malformed):
            answers.checked("agent", verb, value)
