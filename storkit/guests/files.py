"""Guests as TOML files in a directory beside the inventory: guests/NAME.toml, made to be kept in git; beside it the
guest's own document, if it has one: guests/NAME.xml of libvirt, guests/NAME.cfg of xl.

They are a checkout of what the guest's pool keeps (core.guest.KeptGuest): a line `generation = N` says of which
generation. storkit writes a file when a guest is defined or cloned, and never over one that is there unless it is told
to: the administrator's comments and order stay.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, Problems, StorkitError, UsageError, raise_problems
from storkit.core.guest import Boot, Disk, Guest, Nic, Root
from storkit.core.model import check_name
from storkit.core.units import parse_size
from storkit.guests import document
from storkit.guests.check import MIB, check
from storkit.system.files import PARTIAL, explain, sync_directory, write_atomic, write_new

SUFFIX = ".toml"
MODE = 0o644
_HYPERVISOR = next(field.default for field in fields(Guest) if field.name == "hypervisor")
GENERATION = "generation"
"""The key of a record that says which generation of what is kept it was made from; it is no part of the guest."""
_MARK = re.compile(rf"^[ \t]*{GENERATION}[ \t]*=[^\n]*(\n|\Z)", re.M)
_TABLE = re.compile(r"^[ \t]*\[", re.M)
_LARGEST = 1 << 16
"""Characters of a record."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What a guest's files say, as they are."""

    record: str
    """Without the generation."""
    document: str
    generation: int
    """Which the record says that it was made from; 0: it says none."""


def path(directory: Path, name: str) -> Path:
    """The file of a guest. Raises UsageError for what cannot name one."""
    return directory / (check_name("guest", name) + SUFFIX)


def names(directory: Path) -> list[str]:
    """The guests there are, in the order of their names; none if there is no such directory."""
    try:
        entries = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(entry.removesuffix(SUFFIX) for entry in entries if entry.endswith(SUFFIX) and entry[0] != ".")


def load(directory: Path, name: str) -> Guest:
    """The guest of a name.

    Raises NotFound; UsageError or Problems with all that is wrong in its file, each with file and key.
    """
    file = path(directory, name)
    try:
        text = file.read_text()
    except FileNotFoundError:
        known = ", ".join(names(directory)) or "none"
        raise NotFound(f"there is no guest {name!r}", f"guests in {directory}: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{file} cannot be read: {reason}", f"check it: less {file}") from None
    return parse(text, str(file), name, directory)


def load_all(directory: Path) -> list[Guest]:
    """All guests in the order of their names; raises Problems with what is wrong in any of the files."""
    guests: list[Guest] = []
    problems: list[StorkitError] = []
    for name in names(directory):
        try:
            guests.append(load(directory, name))
        except StorkitError as error:
            problems += error.problems if isinstance(error, Problems) else [error]
    raise_problems(problems)
    return guests


def parse(text: str, where: str, name: str, directory: Path = Path(), own: str | None = None) -> Guest:
    """The guest that `text` (TOML) describes; `where` is named in messages. `name` may be left out of the text. A
    document of its own is in `directory`, or `own` is its text."""
    data = _table(text, where)
    problems: list[StorkitError] = []
    if data.setdefault("name", name) != name:
        problems.append(
            UsageError(
                f"{where}: name: {data['name']!r} is not the file's name", f'name = "{name}", or rename the file'
            )
        )
    if type(generation := data.pop(GENERATION, 0)) is not int or not 0 <= generation < 10**18:
        problems.append(UsageError(f"{where}: {GENERATION}: {generation!r:.40} is no count", "storkit guest diff"))
    if "document" in data:
        data["document"] = _read_document(directory, data, where, problems, own)
        raise_problems(problems)
    guest = from_data(data, where, problems)
    raise_problems(problems)
    assert guest is not None
    return guest


def texts(directory: Path, name: str) -> Texts:
    """What the files of a guest say. Raises as `load`."""
    guest = load(directory, name)
    text = path(directory, name).read_text()
    generation: int = _table(text, name).get(GENERATION, 0)
    return Texts(_marked(text, 0), guest.document, generation)


def mark(directory: Path, name: str, generation: int) -> None:
    """Say in a guest's file which generation it is, and change nothing else of it."""
    file = path(directory, name)
    text = file.read_text()
    if (new := _marked(text, generation)) != text:
        write_atomic(file, new, MODE)


def write(directory: Path, name: str, said: Texts, hypervisor: str) -> Path:
    """Write a guest's files, over those that are there; the record's."""
    file = path(directory, name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if said.document:
            write_atomic(directory / (name + document.SUFFIXES[hypervisor]), said.document, MODE)
        write_atomic(file, _marked(said.record, said.generation), MODE)
    except OSError as error:
        raise explain(error, file) from error
    return file


def _marked(text: str, generation: int) -> str:
    """A record's text that says this generation; 0: none."""
    table = match.start() if (match := _TABLE.search(text)) else len(text)
    own = _MARK.sub("", text[:table])
    line = f"{GENERATION} = {generation}\n" if generation else ""
    return line + own + text[table:]


def _table(text: str, where: str) -> dict[str, Any]:
    if len(text) > _LARGEST:
        raise UsageError(f"{where} is too large for a guest's record", "check what it is")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: {error}", "see toml.io for the syntax") from None


def _read_document(
    directory: Path, data: dict[str, Any], where: str, problems: list[StorkitError], text: str | None
) -> str:
    """The text of a guest's document, which stands beside its record unless it is given; adds to `problems`."""
    suffix = document.SUFFIXES.get(str(data.get("hypervisor", _HYPERVISOR)), "")
    own = f"{data['name']}{suffix}"
    if not suffix or data["document"] != own:
        wanted = f'document = "{own}"' if suffix else f"hypervisor = {' or '.join(map(repr, document.SUFFIXES))}"
        problems.append(UsageError(f"{where}: document: it cannot be {data['document']!r}", f"write {wanted}"))
        return ""
    said = [key for key in document.FACTS if key in data]
    problems += [UsageError(f"{where}: {key}: the document says it", f"change it in {directory / own}") for key in said]
    try:
        if text is None:
            with (directory / own).open(encoding="utf-8", newline="") as file:
                text = file.read(document.LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        problems.append(UsageError(f"{directory / own} cannot be read: {reason}", f"check it: less {directory / own}"))
        return ""
    if len(text) > document.LARGEST:
        problems.append(UsageError(f"{directory / own} is too large for a guest's document", "check what it is"))
    return text


def from_data(data: dict[str, Any], where: str, problems: list[StorkitError]) -> Guest | None:
    """The guest that plain values describe, as a file has them (memory may be a text); adds to `problems`."""
    before = len(problems)
    if data.get("document"):
        data = {"memory": 0, **data}  # which the document says
    if isinstance(data.get("memory"), str):
        try:
            data = {**data, "memory": parse_size(data["memory"])}
        except UsageError as error:
            problems.append(UsageError(f"{where}: memory: {error.message}", error.hint))
            data = {**data, "memory": MIB}
    guest: Guest | None = codec.convert(Guest, data, where, "", problems)
    if guest is not None:
        problems += check(guest, where)
    if guest is not None and guest.document and len(problems) == before:
        problems += document.problems(guest, where)
        guest = guest if len(problems) > before else document.with_facts(guest)
    return guest if len(problems) == before else None


def to_data(guest: Guest) -> dict[str, Any]:
    """The guest as a file has it: sizes as text, and nothing that only says the default."""
    data = _short(guest)
    if not guest.document:
        return {**data, "memory": _size(guest.memory)}
    for key in document.FACTS:
        data.pop(key, None)
    return {**data, "document": guest.name + document.SUFFIXES[guest.hypervisor]}


def dumps(guest: Guest) -> str:
    """The text of a guest's file."""
    import tomli_w

    return tomli_w.dumps(to_data(guest))


def check_room(directory: Path, guest: Guest, replace: bool = False) -> None:
    """See whether `save` could write a guest's files, and write none. Raises as it does."""
    raise_problems([*check(guest), *(document.problems(guest) if guest.document else ())])
    file = path(directory, guest.name)
    if replace or _same(file, guest):
        return
    if os.path.lexists(file):
        raise _taken(guest.name, file)
    if guest.document:
        _refuse_other(directory / to_data(guest)["document"], guest.document)


def save(directory: Path, guest: Guest, replace: bool = False, generation: int = 0) -> Path:
    """Write a guest's file, whole or not at all. One that says the same already stays untouched, comments and all, but
    for the generation, where there is one.

    Raises UsageError or Problems: the record is wrong. Conflict: there is another file of that name, and `replace`
    was not said; or no room.
    """
    raise_problems([*check(guest), *(document.problems(guest) if guest.document else ())])
    file = path(directory, guest.name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if _same(file, guest):
            if generation:
                mark(directory, guest.name, generation)
            return file
        if guest.document:
            # The record, which names it, comes last.
            _save_document(directory / to_data(guest)["document"], guest.document, replace and file.exists())
        text = _marked(dumps(guest), generation)
        if replace:
            write_atomic(file, text, MODE)
        else:
            _create(file, text)
    except FileExistsError:
        raise _taken(guest.name, file) from None
    except OSError as error:
        raise explain(error, file) from error
    return file


def _save_document(file: Path, text: str, replace: bool) -> None:
    """Write a guest's document. Raises Conflict: a file of that name is there, which is no document of the guest's."""
    if replace:
        write_atomic(file, text, MODE)
        return
    try:
        _create(file, text)
    except FileExistsError:
        _refuse_other(file, text)


def _refuse_other(file: Path, text: str) -> None:
    """Raise Conflict if a file is there that is no document of the guest's."""
    if file.exists() and file.read_bytes() != text.encode():
        message = f"{file} is there already, and says something else"
        raise Conflict(message, f"mv {file} elsewhere, or name the guest otherwise: --name")


def _taken(name: str, file: Path) -> Conflict:
    return Conflict(f"guest {name!r} exists already: {file}", "choose another name, or edit it")


def delete(directory: Path, name: str) -> None:
    """Remove a guest's file, its document, and what an interrupted `save` left of it; what is gone already is fine."""
    file = path(directory, name)
    if not directory.is_dir():
        return
    try:
        own = _document_of(file, name)
        file.unlink(missing_ok=True)
        if own:
            (directory / own).unlink(missing_ok=True)
        for leftover in directory.glob(f"{file.name}*{PARTIAL}"):
            leftover.unlink(missing_ok=True)
        sync_directory(directory)
    except OSError as error:
        raise explain(error, file) from error


def _document_of(file: Path, name: str) -> str:
    """The name of the document that a guest's file names; empty: none that is the guest's."""
    try:
        said = tomllib.loads(file.read_text()).get("document")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return ""
    return said if said in {name + suffix for suffix in document.SUFFIXES.values()} else ""


def says(directory: Path, guest: Guest) -> bool:
    """Whether a guest's files say just this, however they are written."""
    return _same(path(directory, guest.name), guest)


def _same(file: Path, guest: Guest) -> bool:
    try:
        return parse(file.read_text(), str(file), guest.name, file.parent) == guest
    except (OSError, UnicodeDecodeError, StorkitError):
        return False


def _create(file: Path, text: str) -> None:
    """As write_atomic, but link(2) instead of rename(2): of two commands making the same guest, one gets EEXIST."""
    partial = file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}")
    write_new(partial, text, MODE, durable=True)
    try:
        os.link(partial, file)
    finally:
        partial.unlink()
    sync_directory(file.parent)


def _size(size: int) -> str:
    return f"{size // 1024**3}GiB" if size % 1024**3 == 0 else f"{size // MIB}MiB"


def _short(record: Guest | Boot | Root | Disk | Nic) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Boot | Root):
            value = _short(value)
        elif isinstance(value, list):
            value = [_short(item) if isinstance(item, Disk | Nic) else item for item in value]
        if value not in ({}, [], "", None) and value != field.default:
            shown[field.name] = value
    return shown
