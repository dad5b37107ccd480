"""Reads a Xen guest's configuration: xl.cfg(5), with the strings of disks (xl-disk-configuration(5)) and network cards
(xl-network-configuration(5)) in it. The grammar is that of Xen 4.17's libxlu, including escapes and `+=`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePath
from typing import NamedTuple, TypeAlias

from storkit.core.errors import UsageError
from storkit.core.guest import Nic
from storkit.guests.draft import GuestDraft, path_source
from storkit.guests.limits import XEN_TYPES
from storkit.guests.quoting import quote_xl

Value: TypeAlias = "str | int | list[Value]"

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f]+|\#[^\n]*)|(?P<newline>\n|;)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"""
    r"""|(?P<number>[0-9][0-9a-fx]*)(?![A-Za-z0-9_])"""
    r"""|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<mark>\+=|[=\[\],])""",
)
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'"}
_PYTHON = re.compile(r"^(?:import|from|def|if|print)\b", re.MULTILINE)
_EVENTS = {"on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "destroy"}
_POSITIONAL = ("target", "format", "vdev", "access")
_FORMATS = ("raw", "qcow", "qcow2", "vhd", "qed")


class Token(NamedTuple):
    """A word of a configuration, and where it stands."""

    kind: str
    word: str
    line: int
    start: int


class Assignment(NamedTuple):
    """A setting, as it is written: `tokens` are those of its value."""

    key: str
    operator: str
    tokens: list[Token]


def read(text: str) -> GuestDraft:
    """What a configuration says. Raises UsageError with the line that cannot be read."""
    found = GuestDraft()
    settings = read_settings(text)
    found.memory = _number(settings, "memory", _number(settings, "maxmem", 0)) * 1024**2
    if not {"type", "builder"} & settings.keys():
        found.machine = "pv"  # libxl's own default
    cmdline = _compose(settings)
    for key, value in settings.items():
        _setting(found, key, value, settings)
    if cmdline:
        found.boot = replace(found.boot, cmdline=cmdline)
    if not found.boot.kernel and cmdline:
        found.warn(f"cmdline: {cmdline!r} is not kept: without a kernel it has no use")
        found.boot = replace(found.boot, cmdline="")
    return found


def read_settings(text: str) -> dict[str, Value]:
    """The keys and values of an xl configuration; a key said twice has its last value, as for xl."""
    settings: dict[str, Value] = {}
    for key, operator, tokens in assignments(text):
        value, _ = _value(tokens, 0, tokens[0].line)
        settings[key] = _joined(settings.get(key), value, tokens[0].line) if operator == "+=" else value
    return settings


def assignments(text: str) -> list[Assignment]:
    """The settings of an xl configuration, in their order. Raises UsageError with the line that cannot be read."""
    tokens = _tokens(text)
    found: list[Assignment] = []
    position = 0
    while position < len(tokens):
        kind, word, line, _ = tokens[position]
        if kind == "newline":
            position += 1
            continue
        operator = tokens[position + 1].word if position + 1 < len(tokens) else ""
        if kind != "name" or operator not in ("=", "+="):
            raise UsageError(f"line {line}: {word!r} begins no setting", 'settings are written as key = "value"')
        start = position + 2
        _, position = _value(tokens, start, line)
        if position < len(tokens) and tokens[position].kind != "newline":
            raise UsageError(f"line {line}: {tokens[position].word!r} follows the value of {word}")
        found.append(Assignment(word, operator, tokens[start:position]))
    return found


def _tokens(text: str) -> list[Token]:
    tokens: list[Token] = []
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            rest = text[position:].split("\n", 1)[0]
            hint = "see xl.cfg(5) for the syntax"
            if _PYTHON.search(text):
                hint = "this is a Python program, as xm took them: xl does not read it either; write what it comes to"
            raise UsageError(f"line {line}: {rest[:40]!r} cannot be read", hint)
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append(Token(kind, match[0], line, position))
        line += match[0].count("\n")
        position = match.end()
    return tokens


def _value(tokens: list[Token], position: int, line: int) -> tuple[Value, int]:
    kind, word = tokens[position][:2] if position < len(tokens) else ("end", "the end")
    if kind == "string":
        return unquoted(word, line), position + 1
    if kind == "number":
        return _integer(word, line), position + 1
    if word != "[":
        raise UsageError(f"line {line}: {word!r} is no value", "values are strings in quotes, numbers and [ lists ]")
    values: list[Value] = []
    position = _skip(tokens, position + 1)
    while position < len(tokens) and tokens[position].word != "]":
        value, position = _value(tokens, position, tokens[position].line)
        values.append(value)
        position = _skip(tokens, position)
        if position < len(tokens) and tokens[position].word == ",":
            position = _skip(tokens, position + 1)
        elif position < len(tokens) and tokens[position].word != "]":
            raise UsageError(f"line {tokens[position].line}: a comma or ] is missing")
    if position >= len(tokens):
        raise UsageError(f"line {line}: the list does not end")
    return values, position + 1


def _integer(word: str, line: int) -> int:
    """As strtoul(3) with base 0: 0x is hexadecimal, a leading 0 octal."""
    try:
        return int(word, 16 if word.startswith("0x") else 8 if word.startswith("0") else 10)
    except ValueError:
        raise UsageError(f"line {line}: {word!r} is no number") from None


def _skip(tokens: list[Token], position: int) -> int:
    while position < len(tokens) and tokens[position].word == "\n":
        position += 1
    return position


def unquoted(word: str, line: int) -> str:
    """What a quoted string stands for."""

    def unescape(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise UsageError(f"line {line}: {match[0]} is no escape that every xl reads alike", "write the character")
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.)", unescape, word[1:-1])


def _joined(old: Value | None, new: Value, line: int) -> Value:
    if old is None:
        return new
    if isinstance(old, list) and isinstance(new, list):
        return old + new
    if isinstance(old, str) and isinstance(new, str):
        return old + new
    raise UsageError(f"line {line}: += joins two strings or two lists")


def _number(settings: dict[str, Value], key: str, otherwise: int) -> int:
    value = settings.get(key, otherwise)
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if not isinstance(value, int):
        raise UsageError(f"{key}: a whole number is wanted, not {value!r}")
    return value


def _compose(settings: dict[str, Value]) -> str:
    """cmdline, or what xl makes of root and extra where there is none."""
    if "cmdline" in settings:
        return str(settings["cmdline"])
    root = f"root={settings['root']}" if "root" in settings else ""
    return " ".join(part for part in (root, str(settings.get("extra", ""))) if part)


def _setting(found: GuestDraft, key: str, value: Value, settings: dict[str, Value]) -> None:
    match key, value:
        case (("name" | "uuid"), str()):
            setattr(found, key, value)
        case "vcpus", _:
            found.vcpus = _number(settings, key, 1)
        case "memory", _:
            pass
        case (("maxmem" | "maxvcpus"), _) if value == settings.get({"maxmem": "memory", "maxvcpus": "vcpus"}[key]):
            pass
        case (("type" | "builder"), _):
            kind = {"generic": "pv"}.get(str(value), value)
            if kind not in XEN_TYPES:
                found.warn(f"{key}: {value} becomes pvh")
            elif kind != ("hvm" if {settings.get("firmware"), settings.get("bios")} & {"uefi", "ovmf"} else "pvh"):
                found.machine = str(kind)
        case (("firmware" | "bios"), ("uefi" | "ovmf")):
            found.boot = replace(found.boot, firmware="uefi")
        case "kernel", str():
            found.boot = replace(found.boot, kernel=value)
        case "ramdisk", str():
            found.boot = replace(found.boot, initrd=value)
        case (("cmdline" | "root" | "extra"), _):
            if key != "cmdline" and "cmdline" in settings:
                found.warn(f"{key}: {value} is not kept: there is a cmdline")
        case "bootloader", "pygrub" if "kernel" not in settings:
            pass
        case "serial", (str() | [str()]) if str(value if isinstance(value, str) else value[0]).startswith("file:"):
            found.console = str(value if isinstance(value, str) else value[0]).removeprefix("file:")
        case "disk", list():
            for spec in value:
                _disk(found, str(spec))
        case "vif", list():
            for spec in value:
                _vif(found, str(spec))
        case (("on_poweroff" | "on_reboot" | "on_crash"), _) if value == _EVENTS[key]:
            pass
        case _:
            found.extra.append(f"{key} = {_written(value)}")
            found.warn(f"{key}: kept as it is, for Xen only")


def _written(value: Value) -> str:
    if isinstance(value, list):
        return "[ " + ", ".join(_written(item) for item in value) + " ]" if value else "[ ]"
    return str(value) if isinstance(value, int) else quote_xl(value)


class Part(NamedTuple):
    """A parameter of a disk's string: its value, and where that and all of it stand there."""

    value: str
    start: int
    end: int
    first: int
    """Where the parameter begins: before its key, if that is written."""


def read_disk(spec: str) -> dict[str, str]:
    """A disk's string as its parameters; a flag stands for itself."""
    parts = disk_parts(spec).items()
    return {key: part.value for key, part in parts if part.value or key not in _POSITIONAL}


def disk_parts(spec: str) -> dict[str, Part]:
    """A disk's string as its parameters, with their places."""
    parts: dict[str, Part] = {}
    positional = list(_POSITIONAL)
    position = len(spec) - len(spec.lstrip())
    old = re.compile(r"(phy|file|raw|qcow2?|vhd|tap2?|aio|tapdisk):(?:(aio|raw|qcow2?|vhd):)?").match(spec, position)
    if old:
        parts["prefix"] = Part(old[1], old.start(), old.end(), old.start())
        if {old[1], old[2]} & set(_FORMATS):
            parts["format"] = Part(old[1] if old[1] in _FORMATS else old[2], old.start(), old.end(), old.start())
        positional.remove("format")
        position = old.end()
    while position < len(spec):
        if spec.startswith("target=", position):
            # libxlu_disk_l.l takes one comma off the end
            value = spec[position + len("target=") :].removesuffix(",")
            start = position + len("target=")
            parts["target"] = Part(value, start, start + len(value), position)
            break
        end = spec.find(",", position)
        end = len(spec) if end < 0 else end
        word = spec[position:end]
        key, equals, value = word.partition("=")
        if equals:
            parts[key.strip()] = Part(value, end - len(value), end, position)
        elif word in ("cdrom", "discard", "no-discard", "direct-io-safe", "trusted", "untrusted", "colo", "no-colo"):
            parts[word] = Part("", end, end, position)
        elif positional:
            name = positional.pop(0)
            if name in parts and positional:
                name = positional.pop(0)
            parts[name] = Part(word, position, end, position)
        position = end + 1
        while position < len(spec) and spec[position] in " \t\n":
            position += 1
    return parts


def _disk(found: GuestDraft, spec: str) -> None:
    parameters = read_disk(spec)
    vdev, _, kind = parameters.pop("vdev", "").partition(":")
    target = parameters.pop("target", "")
    prefix, place = parameters.pop("prefix", ""), f"disk {vdev or spec}"
    if kind == "cdrom" or "cdrom" in parameters or parameters.get("devtype") == "cdrom" or not target:
        found.warn(f"{place}: a cdrom is not kept")
        return
    script = parameters.pop("script", "")
    if PurePath(script).name == "block-storkit":
        target = f"/dev/storkit/{target}"
    elif script:
        found.warn(f"{place}: script={script} with target {target} is not kept")
        return
    path = target if target.startswith("/") else f"/dev/{target}"
    source = path_source(path, parameters.pop("format", "raw"))
    if prefix == "phy" or parameters.get("backendtype") == "phy":
        source = replace(source, kind="block")
        parameters.pop("backendtype", None)
    elif parameters.get("backendtype") == "qdisk" and source.kind == "file":
        parameters.pop("backendtype")
    readonly = parameters.pop("access", "rw") in ("r", "ro")
    for key, value in parameters.items():
        if (key, value) not in (("devtype", "disk"), ("discard", "")):
            found.warn(f"{place}: {key}{'=' + value if value else ''} is not kept")
    found.add_disk(source, vdev, readonly=readonly)


def _vif(found: GuestDraft, spec: str) -> None:
    parameters = {
        key.strip(): value.strip() for key, _, value in (part.partition("=") for part in spec.split(",")) if key.strip()
    }
    bridge, mac = parameters.pop("bridge", "xenbr0"), parameters.pop("mac", "")
    found.nics.append(Nic(bridge, mac, parameters.pop("model", "virtio")))
    for key, value in parameters.items():
        found.warn(f"vif {len(found.nics)}: {key}={value} is not kept")
