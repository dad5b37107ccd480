"""rtslib's saveconfig.json: storkit's entries are spliced into it, everybody else's stay as they are, byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storkit.core.errors import Unsafe
from storkit.core.model import Secret
from storkit.tech.iscsi import savefile, target
from storkit.tech.iscsi.names import Chapped

DATA = Path(__file__).with_name("data")
UUID = "0c9f3f0e-1111-2222-3333-444455556601"
HOST = "iqn.2026-11.org.storkit:host.a"


def unit(name: str = "web", **changes: Any) -> target.Unit:
    chap = Chapped("me", Secret("secret-of-the-client"), "you", Secret("secret-of-the-target"))
    made = target.Unit(
        name=f"storkit-{name}",
        serial=UUID,
        device=f"/dev/mapper/storkit:{name}:export",
        readonly=False,
        discard=True,
        iqn=f"iqn.2026-11.org.storkit:{name}",
        portals=["10.0.0.1:3260", "[fd00::1]:3260"],
        authentication=True,
        access={HOST: target.Access(True, chap)},
    )
    return replace(made, **changes)


@pytest.fixture(params=sorted(path.name for path in DATA.glob("rtslib-*-saveconfig*.json")))
def foreign(request: pytest.FixtureRequest) -> str:
    return (DATA / str(request.param)).read_text()


def test_what_is_put_in_and_taken_out_leaves_the_file_as_it_was(foreign: str) -> None:
    with_ours = savefile.splice(foreign, [unit("web"), unit("db")])
    assert [entry["name"] for entry in json.loads(with_ours)["storage_objects"]][-2:] == ["storkit-web", "storkit-db"]
    assert savefile.splice(with_ours, [unit("web"), unit("db")]) == with_ours
    fewer = savefile.splice(with_ours, [unit("web", access={})])
    assert savefile.splice(fewer, [unit("db", access={})]) == foreign


def test_a_changed_entry_is_replaced_where_it_stands(foreign: str) -> None:
    with_ours = savefile.splice(foreign, [unit("web"), unit("db")])
    changed = savefile.splice(with_ours, [unit("web", access={HOST: target.Access(False)})])
    before, after = json.loads(with_ours), json.loads(changed)
    (place,) = [n for n, entry in enumerate(before["targets"]) if entry["wwn"] == unit("web").iqn]
    (acl,) = after["targets"][place]["tpgs"][0]["node_acls"]
    assert acl == {
        "mapped_luns": [{"alias": "storkit", "index": 0, "tpg_lun": 0, "write_protect": True}],
        "node_wwn": HOST,
    }
    del before["targets"][place], after["targets"][place]
    assert before == after


def test_an_entry_of_the_same_name_of_another_kind_is_not_ours() -> None:
    theirs = {"storage_objects": [{"name": "storkit-web", "plugin": "fileio"}], "targets": []}
    text = json.dumps(theirs)
    kept = json.loads(savefile.splice(text, [unit("web", access={})]))
    assert kept == theirs


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=8), values, max_size=3),
    st.lists(values, max_size=3),
    st.sampled_from([None, 0, 2, "\t"]),
    st.booleans(),
)
def test_any_other_content_survives(members: dict[str, Any], entries: list[Any], indent: Any, ascii: bool) -> None:
    before = {**members, "storage_objects": entries}
    before.pop("targets", None)
    text = json.dumps(before, indent=indent, ensure_ascii=ascii)
    after = json.loads(savefile.splice(text, [unit()]))
    assert after["storage_objects"][:-1] == entries and after["storage_objects"][-1]["name"] == "storkit-web"
    assert len(after.pop("targets")) == 1
    assert {**after, "storage_objects": entries} == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "{",
        "[]",
        "null",
        '{"targets": []',
        '{"targets": {}}',
        '{"targets": []} x',
        '{"a": 1, "a": 2}',
        "\0" * 9,
    ],
)
def test_a_damaged_file_is_never_written(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savefile, "DIRECTORIES", (tmp_path,))
    file = tmp_path / "saveconfig.json"
    file.write_text(text)
    for act in (savefile.check, lambda: savefile.save([unit()])):
        with pytest.raises(Unsafe, match="damaged, and is not overwritten"):
            act()
    assert file.read_text() == text and list(tmp_path.iterdir()) == [file]


def test_the_file_is_made_for_root_alone_and_only_when_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savefile, "DIRECTORIES", (tmp_path / "none", tmp_path / "made"))
    savefile.save([unit(access={})])
    assert not (tmp_path / "made").exists()
    savefile.save([unit()])
    file = tmp_path / "made" / "saveconfig.json"
    assert file.stat().st_mode & 0o777 == 0o600
    portals = json.loads(file.read_text())["targets"][0]["tpgs"][0]["portals"]
    assert [(portal["ip_address"], portal["port"]) for portal in portals] == [("10.0.0.1", 3260), ("[fd00::1]", 3260)]
    before = file.stat().st_mtime_ns, file.stat().st_ino
    savefile.save([unit()])
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
