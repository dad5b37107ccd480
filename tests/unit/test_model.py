"""Names, secrets, and records to JSON and back."""

from __future__ import annotations

import json
import pickle
import types
import typing
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, cast, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storkit.core import codec, identities
from storkit.core.errors import Problems, StorkitError, UsageError, from_json
from storkit.core.model import (
    NAME_MAX,
    Attachment,
    Credential,
    DiskSource,
    Evidence,
    Export,
    GuestState,
    MigrationResult,
    Offer,
    Secret,
    SecretLine,
    Usage,
    Volume,
    VolumeKind,
    check_name,
    guest_client,
)

UUID = "7d1c9f6e-30a5-4c0b-9d3b-6a1f0d6f8c11"
RECORDS = [Volume, Usage, Offer, Export, DiskSource, Attachment, Evidence, GuestState, MigrationResult, Credential]


@pytest.mark.parametrize("name", ["a", "A9", "web-1", "a.b_c-d", "9", "x" * NAME_MAX, "a.", "a-"])
def test_good_names(name: str) -> None:
    assert check_name("volume", name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a..b", "-a", "_a", ".a", "a/b", "/", "a\0", "a\n", "\na", "a b", " a", "a ", "x" * (NAME_MAX + 1),
     "ä", "ａ", "a\u202eb", "a:b", "a,b", "a=b", "$(x)", "a'b", 'a"b', "a;b", "*", "~", "x" * 10_000],
)  # fmt: skip
def test_bad_names_are_refused_with_a_hint(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name("volume", name)
    assert "volume" in caught.value.message and caught.value.hint
    assert len(caught.value.message) < 200 and caught.value.message.isprintable()


@given(st.text(max_size=80))
def test_a_name_that_passes_is_safe_everywhere(name: str) -> None:
    try:
        check_name("guest", name)
    except UsageError as error:
        assert error.message.isprintable()
        return
    assert name.isascii() and 0 < len(name) <= NAME_MAX and name[0].isalnum() and ".." not in name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


# Secrets


def test_a_secret_shows_only_stars() -> None:
    secret = Secret("hunter2")
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!s:>5}", "%s" % secret, json.dumps(codec.dump(secret))]  # noqa: UP031
    shown += [repr(Credential("psk", "u", secret)), repr([secret]), repr({"k": secret}), repr(ValueError(secret))]
    shown.append(json.dumps(codec.dump(Credential("x509", files={"client-key.pem": secret}))))
    for text in shown:
        assert "hunter2" not in text and "***" in text
    assert secret.reveal() == "hunter2"
    with pytest.raises(TypeError):
        json.dumps(secret)
    assert not hasattr(secret, "__dict__")


def test_secrets_compare_and_are_true_when_there_is_one() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("x") and not Secret("")
    assert len({Secret("a"), Secret("a")}) == 1


def test_secrets_travel_only_when_asked() -> None:
    key = Credential("psk", "u", Secret("k"))
    offer = Offer("v", UUID, 1, "c", "nbd", "n", "i", True, credential=key)
    assert codec.dump(offer)["credential"]["secret"] == "***"
    assert codec.load(Offer, codec.dump(offer, reveal=True)) == offer


# Records


NAMES = st.from_regex(
    r"[A-Za-z0-9]([A-Za-z0-9_-]|\.(?!\.)){0,20}", fullmatch=True, alphabet=st.characters(codec="ascii")
)
LINES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), max_size=40)
PATHS = st.lists(NAMES).map(lambda names: "/" + "/".join(names))
HOSTS = NAMES | PATHS.map(lambda path: f"local:/srv{path}") | NAMES.map(lambda name: f"ssh://root@{name}:22")
UUIDS = st.uuids().map(str)
GOOD = {
    identities.Uuid: UUIDS,
    identities.MaybeUuid: UUIDS | st.just(""),
    identities.VolumeName: NAMES,
    identities.PoolName: NAMES,
    identities.MaybePool: NAMES | st.just(""),
    identities.GuestName: NAMES,
    identities.HostName: HOSTS,
    identities.MaybeHost: HOSTS | st.just(""),
    identities.ClientName: HOSTS | NAMES.map(guest_client),
    identities.Size: st.integers(0, 2**63 - 1),
    identities.Count: st.integers(0, 2**70),
    identities.Port: st.integers(0, 65535),
    identities.MaybePath: PATHS | st.just(""),
    identities.MaybeAddress: st.ip_addresses().map(str) | NAMES | st.just(""),
    identities.Portal: st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(lambda at: f"[{at}]:3260"),
    identities.Word: NAMES | st.just(""),
    identities.Line: LINES,
    identities.Hex: st.from_regex("[0-9a-f]{0,64}", fullmatch=True),
    identities.Decimal: st.integers(0, 2**62).map(str),
    SecretLine: LINES.map(Secret),
}
"""What a field of each type may hold."""


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Anything that a field of this type may hold."""
    if hint in GOOD:
        return GOOD[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*(values(arg) for arg in args))
    if origin is list:
        return st.lists(values(args[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=3)
    if is_dataclass(hint):
        fields = typing.get_type_hints(hint, include_extras=True)
        return st.builds(cast("type[Any]", hint), **{name: values(each) for name, each in fields.items()})
    return st.from_type(hint)


st.register_type_strategy(Secret, st.text().map(Secret))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_record_survives_the_wire(record: type) -> None:
    # Each draws anew for all of its fields: 25 of them are hundreds of values of each type.
    @settings(max_examples=25)
    @given(values(record))
    def check(value: Any) -> None:
        wire = json.loads(json.dumps(codec.dump(value, reveal=True)))
        assert codec.load(record, wire) == value

    check()


@dataclass(frozen=True)
class Inner:
    size: int
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    many: list[Inner] = field(default_factory=list)
    table: dict[str, int] = field(default_factory=dict)
    flag: bool = False
    ratio: float = 1.0
    maybe: Inner | None = None
    tags: frozenset[str] = frozenset()


def test_all_that_is_wrong_is_reported_at_once_with_its_place() -> None:
    wrong = {
        "inner": {"size": "big", "kind": "c"},
        "many": [{"size": 1}, {"size": True, "extra": 1}, 3],
        "table": {"a": "b"},
        "flag": 1,
        "ratio": "x",
        "maybe": [],
        "tags": "ab",
        "nmae": "typo",
    }
    with pytest.raises(Problems) as caught:
        codec.load(Outer, wrong, "file.toml")
    messages = [problem.message for problem in caught.value.problems]
    assert all(message.startswith("file.toml: ") for message in messages)
    for part in (
        "unknown key 'nmae'",
        "'name' is missing",
        "inner.size: a whole number is wanted, not 'big'",
        "inner.kind: 'c' is not one of 'a', 'b'",
        "many[1]: unknown key 'extra'",
        "many[1].size: a whole number is wanted, not True",
        "many[2]: a table is wanted, not a whole number",
        "table.a: a whole number is wanted, not 'b'",
        "flag: true or false is wanted, not 1",
        "ratio:",
        "maybe: a table is wanted, not a list",
        "tags: a list is wanted, not a string",
    ):
        assert any(part in message for message in messages), part
    assert len(messages) == 12


def test_defaults_and_conversions() -> None:
    assert codec.load(Outer, {"name": "n", "inner": {"size": 1}, "ratio": 2}) == Outer("n", Inner(1), ratio=2.0)
    loaded = codec.load(Outer, {"name": "n", "inner": {"size": 1}, "maybe": None, "tags": ["b", "a"]})
    assert loaded.tags == {"a", "b"} and codec.dump(loaded)["tags"] == ["a", "b"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))  # fmt: skip
def test_any_json_is_a_record_or_an_explained_error(data: Any) -> None:
    for record in (Volume, Outer):
        try:
            codec.load(record, data)
        except StorkitError as error:
            assert error.exit_code == UsageError.exit_code


def test_what_has_no_json_form_is_a_bug_not_a_guess() -> None:
    for value in (object(), b"bytes", {1, object()}, 1j):
        with pytest.raises(TypeError):
            codec.dump(value)


def test_kinds_of_volumes() -> None:
    assert get_args(VolumeKind) == ("disk", "image", "snapshot", "tree")
    with pytest.raises(UsageError, match="'cdrom' is not one of"):
        codec.load(Volume, {"name": "n", "uuid": UUID, "size": 1, "kind": "cdrom"})


def test_errors_cross_hosts_with_their_kind() -> None:
    problems = Problems([UsageError("one", "do"), from_json({"kind": "unsafe", "message": "two", "hint": "then"})])
    there = from_json(json.loads(json.dumps(problems.to_json())))
    assert isinstance(there, Problems)
    assert [(type(p).__name__, p.message, p.hint) for p in there.problems] == [
        ("UsageError", "one", "do"), ("Unsafe", "two", "then"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        (DiskSource("file", "/a b"), "/a b"),
        (DiskSource("network", protocol="nbd", export="v", socket="/run/s"), "nbd+unix:///v?socket=/run/s"),
        (DiskSource("network", protocol="nbd", export="v", server="h", port=1), "nbd://h:1/v"),
        (DiskSource("network", protocol="nbd", export="v", server="::1", port=1, tls="psk"), "nbds://[::1]:1/v"),
    ],
)
def test_uris(source: DiskSource, uri: str) -> None:
    assert source.uri == uri


def test_records_are_values() -> None:
    volume = Volume("n", "u", 1)
    with pytest.raises(AttributeError):
        volume.size = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(volume)) == volume == Volume("n", "u", 1)
