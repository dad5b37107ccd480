"""What a key of each grade may have done: nothing is left unsaid, whatever is added to the contracts."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_args

import pytest

from storkit.core import calls, grades, guest, registry
from storkit.core.backend import (
    Backend,
    Hypervisor,
    Pool,
    Transport,
    own_settings,
    path_setting,
    program_setting,
    word_setting,
)
from storkit.core.errors import NotAllowed


def test_every_verb_has_a_grade_and_every_grade_a_verb() -> None:
    known = {(kind, verb) for kind in calls.CONTRACTS for verb in calls.verbs(kind)}
    assert len(known) > 40
    assert known == grades.VERBS.keys()
    assert set(grades.VERBS.values()) == {*grades.GRADES, grades.HOOK}


WORDS = {
    "names", "volumes", "client", "clients", "hosts", "writers", "hold", "format", "checksum", "guests", "by",
    "keepers", "pieces", "manager",
    "macs",
    "paths",  # of files in a disk's own file system, which nothing opens but debugfs
    "holder", "plan", "titles", "title", "coordinator", "target", "towards", "address",
}  # fmt: skip
"""Arguments that are text and name no file of the host: volumes, UUIDs (of holds too), hosts, a format, a digest."""


@pytest.mark.parametrize("kind", calls.CONTRACTS)
def test_arguments_that_are_text_are_words_or_paths_that_are_kept_below_directories(kind: str) -> None:
    for verb in calls.verbs(kind):
        if grades.VERBS[kind, verb] in (grades.GUESTS, grades.HOOK):
            continue
        method = getattr(calls.CONTRACTS[kind], verb)
        for name, hint in typing.get_type_hints(method, localns=vars(guest)).items():
            text = hint is str or str in get_args(hint) or any(str in get_args(each) for each in get_args(hint))
            if text and name not in ("return", *WORDS):
                assert grades.PATHS.get((kind, verb), ("", ""))[0] == name, f"{kind}.{verb}: {name}"
    assert all((kind, verb) in grades.VERBS for kind, verb in grades.PATHS)


def backends() -> list[type[Backend]]:
    finders: list[tuple[type[Any], Callable[[str], type[Backend]]]] = [
        (Pool, registry.pool),
        (Transport, registry.transport),
        (Hypervisor, registry.hypervisor),
    ]
    return [find(name) for kind, find in finders for name in registry.names(kind)]


@pytest.mark.parametrize("cls", backends(), ids=lambda cls: cls.__name__)
def test_settings_of_backends_say_whether_they_are_the_host_s_own(cls: type[Backend]) -> None:
    """Text is a path, a program or a word; what looks like a path or a program is not called a word."""
    own = own_settings(cls.Settings)
    assert "unmarked" not in own.values()
    looks = re.compile(r"path|file|dir|templates?|binary|program|command|exec|uri|url|socket|device|server|script")
    for each in fields(cls.Settings):
        default = each.default if isinstance(each.default, str) else ""
        if "str" in str(each.type) and (looks.search(each.name) or "/" in default or default in cls.needs.tools):
            assert each.name in own, each.name


def test_known_paths_and_programs_are_the_host_s_own() -> None:
    own = {f"{cls.name}.{name}" for cls in backends() for name in own_settings(cls.Settings)}
    assert {"directory.path", "nfs.path", "nfs.server", "nfs.options", "nbd.tls_dir", "qemu.binary"} <= own
    assert {"qemu.templates", "qemu.migration_tls_dir", "libvirt.uri", "libvirt.migrate_uri"} <= own
    assert not {"lvm.floor", "iscsi.portals", "qemu.accel", "nbd.port_first"} & own


def test_text_that_nobody_marked_is_the_host_s_own() -> None:
    @dataclass(frozen=True)
    class Settings:
        helper: str = ""
        more: list[str] | None = None
        word: str = word_setting("x")
        path: str = path_setting()
        program: str = program_setting("sh")
        size: int = 0

    assert own_settings(Settings) == {
        "helper": "unmarked",
        "more": "unmarked",
        "path": "path",
        "program": "program",
    }


def call(target: str, verb: str) -> dict[str, Any]:
    return {"do": "call", "target": target, "verb": verb}


ASKED = [
    (call("pool:p", "find"), "read"),
    (call("hypervisor:qemu", "find"), "read"),
    ({"do": "facts"}, "read"),
    (call("transport:nbd", "offers"), "storage"),
    (call("images", "inspect"), "storage"),
    ({"do": "lock"}, "storage"),
    (call("hypervisor:qemu", "define"), "guests"),
    (call("hypervisor:qemu", "check"), "guests"),
]


@pytest.mark.parametrize(("request_", "needed"), ASKED)
def test_a_grade_may_do_what_those_before_it_may(request_: dict[str, Any], needed: str) -> None:
    for grade in grades.GRADES:
        if grades.GRADES.index(grade) >= grades.GRADES.index(needed):
            grades.check(grade, request_)
        else:
            with pytest.raises(NotAllowed, match=f"takes the grade {needed}"):
                grades.check(grade, request_)
    grades.check("", request_)


@pytest.mark.parametrize(
    "request_", [call("pool:p", "backdoor"), call("agent:x", "lock x"), {"do": "run"}, {}, {"do": "call"}]
)
def test_what_has_no_grade_is_for_no_key_that_has_one(request_: dict[str, Any]) -> None:
    for grade in grades.GRADES:
        with pytest.raises(NotAllowed, match="it has no grade"):
            grades.check(grade, request_)
