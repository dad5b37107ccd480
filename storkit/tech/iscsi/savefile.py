"""The file that the distribution's service restores targets from at boot: rtslib's saveconfig.json.

storkit's entries are made of what was granted and spliced into the file's text; every other entry stays as it is, byte
for byte, whether it is running or not. (rtslib writes what is running, so that what failed to start once is lost from
the file.) A file that cannot be read is never written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from storkit.core.errors import Unsafe
from storkit.system.files import write_atomic
from storkit.tech.iscsi import lio
from storkit.tech.iscsi import target as iscsi_target

DIRECTORIES = lio.DATABASES[:2]
"""Debian's place, and rtslib's own: the first that exists."""
FILE = "saveconfig.json"
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_EMPTY = '{\n  "fabric_modules": [],\n  "storage_objects": [],\n  "targets": []\n}\n'


def directory() -> Path:
    """Where this distribution's rtslib keeps its save file and the target's database."""
    return next((path for path in DIRECTORIES if path.is_dir()), DIRECTORIES[-1])


def save(units: Sequence[iscsi_target.Unit]) -> None:
    """Make the save file say of these units what they are; of those without access, nothing. Others' entries stay.

    Raises Unsafe, with the file as it was, if it is damaged.
    """
    path = (directory() / FILE).resolve()
    try:
        before = path.read_text()
    except FileNotFoundError:
        before = _EMPTY
    except UnicodeDecodeError as error:
        raise _damaged(path, str(error)) from error
    try:
        after = splice(before, units)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if after != before:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(path, after)


def check() -> None:
    """Raise Unsafe if the save file is damaged."""
    save([])


def _damaged(path: Path, reason: str) -> Unsafe:
    hint = f"`targetcli saveconfig` writes what is running now; or restore {path.parent}/backup, or move the file away"
    return Unsafe(f"{path} is damaged, and is not overwritten: {reason}", hint)


def splice(text: str, units: Iterable[iscsi_target.Unit]) -> str:
    """The text of a save file with these units' entries put in, replaced or (no access) taken out.

    Raises ValueError if it is not the text of a save file.
    """
    objects: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    for unit in units:
        objects[unit.name] = storage_object(unit) if unit.access else None
        targets[unit.iqn] = target(unit) if unit.access else None
    text = _spliced(text, "storage_objects", "name", objects, {"plugin": "block"})
    return _spliced(text, "targets", "wwn", targets, {"fabric": "iscsi"})


def storage_object(unit: iscsi_target.Unit) -> dict[str, Any]:
    """A backstore as BlockStorageObject.dump() has it, without what is the kernel's default."""
    attributes = {name: int(value) for name, value in iscsi_target.BACKSTORE_ATTRIBUTES.items()}
    return {
        "alua_tpgs": [],
        "attributes": {**attributes, "emulate_tpu": int(unit.discard)},
        "dev": unit.device,
        "name": unit.name,
        "plugin": "block",
        "readonly": unit.readonly,
        "write_back": False,
        "wwn": unit.serial,
    }


def target(unit: iscsi_target.Unit) -> dict[str, Any]:
    """A target as Target.dump() has it, without what is the kernel's default."""
    attributes = {name: int(value) for name, value in iscsi_target.TPG_ATTRIBUTES.items()}
    tpg = {
        "attributes": {**attributes, "authentication": int(unit.authentication)},
        "enable": True,
        "luns": [{"alias": iscsi_target.LINK, "index": 0, "storage_object": f"/backstores/block/{unit.name}"}],
        "node_acls": [_node_acl(initiator, access) for initiator, access in unit.access.items()],
        "parameters": dict(iscsi_target.TPG_PARAMETERS),
        "portals": [_portal(name) for name in unit.portals],
        "tag": 1,
    }
    return {"fabric": "iscsi", "tpgs": [tpg], "wwn": unit.iqn}


def _node_acl(initiator: str, access: iscsi_target.Access) -> dict[str, Any]:
    acl: dict[str, Any] = {
        "mapped_luns": [{"alias": iscsi_target.LINK, "index": 0, "tpg_lun": 0, "write_protect": not access.writable}],
        "node_wwn": initiator,
    }
    if access.chap is not None:
        acl |= {"chap_userid": access.chap.user, "chap_password": access.chap.secret.reveal()}
        if access.chap.mutual_user:
            acl["chap_mutual_userid"] = access.chap.mutual_user
            acl["chap_mutual_password"] = access.chap.mutual_secret.reveal()
    return acl


def _portal(name: str) -> dict[str, Any]:
    address, _, port = name.rpartition(":")
    return {"ip_address": address, "iser": False, "offload": False, "port": int(port)}


# The text


def _spliced(text: str, section: str, key: str, wanted: dict[str, Any], ours: dict[str, str]) -> str:
    """`text` with the elements of the array `section` whose `key` is in `wanted` (and that are of `ours`' kind)
    replaced, where they stand, or removed; new ones come last."""
    sections = _members(text)
    if section not in sections:
        if not any(wanted.values()):
            return text
        text = _with_section(text, section, bool(sections))
        sections = _members(text)
    start, end = sections[section]
    kept: list[str] = []
    left = {name: entry for name, entry in wanted.items() if entry is not None}
    for value, raw in _elements(text, start):
        name = value.get(key) if isinstance(value, dict) else None
        if name not in wanted or any(value.get(word) != is_ for word, is_ in ours.items()):
            kept.append(raw)
        elif name in left:
            entry = left.pop(name)
            kept.append(raw if entry == value else _dumped(entry))
    kept += [_dumped(entry) for entry in left.values()]
    body = "[\n    " + ",\n    ".join(kept) + "\n  ]" if kept else "[]"
    return text if body == text[start:end] else text[:start] + body + text[end:]


def _dumped(entry: dict[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, indent=2).replace("\n", "\n    ")


def _with_section(text: str, section: str, others: bool) -> str:
    at = _skip(text, text.index("{") + 1)
    after = ",\n  " if others else "\n"
    return f'{text[:at]}"{section}": []{after}{text[at:]}'


def _members(text: str) -> dict[str, tuple[int, int]]:
    """Where the values of the top-level object start and end."""
    at = _expect(text, _skip(text, 0), "{")
    members: dict[str, tuple[int, int]] = {}
    at = _skip(text, at)
    while text[at : at + 1] != "}":
        if members:
            at = _skip(text, _expect(text, at, ","))
        key, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _expect(text, _skip(text, at), ":"))
        value, end = _DECODER.raw_decode(text, start)
        if not isinstance(key, str) or key in members:
            raise ValueError(f"key {key!r}")
        if key in ("storage_objects", "targets") and not isinstance(value, list):
            raise ValueError(f"{key} is not a list")
        members[key] = (start, end)
        at = _skip(text, end)
    if _skip(text, at + 1) != len(text):
        raise ValueError(f"something follows the end, at character {at + 1}")
    return members


def _elements(text: str, start: int) -> list[tuple[Any, str]]:
    """The elements of the array that starts at `start`: value and text."""
    elements: list[tuple[Any, str]] = []
    at = _skip(text, start + 1)
    while text[at] != "]":
        if elements:
            at = _skip(text, at + 1)
        value, end = _DECODER.raw_decode(text, at)
        elements.append((value, text[at:end]))
        at = _skip(text, end)
    return elements


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: str, at: int, sign: str) -> int:
    if text[at : at + 1] != sign:
        raise ValueError(f"{sign!r} is missing at character {at}" if text.strip() else "it is empty")
    return at + 1
