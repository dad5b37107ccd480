"""The arguments that a QEMU command's guest starts with on a host: the command's own, less what says how a process is
run here and now, and with what storkit's hold on the process needs (its monitors, how it receives a migration)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath

from storkit.core.guest import Guest
from storkit.guests.command import Pair, command, pairs
from storkit.guests.documents.edits import edited
from storkit.guests.documents.options import memory_size, read, secret
from storkit.guests.place import Place
from storkit.guests.quoting import quote_option

_LEFT_OUT = ("-S", "-daemonize", "-pidfile", "-incoming")
"""What storkit says itself: whether the guest waits, its process's file, how it is received."""
_TERMINAL = {"-serial": "null", "-parallel": "null", "-monitor": "none", "-debugcon": "null", "-virtioconsole": "null"}
"""Options that may speak with the terminal, which a process in the background has not, to what they say then."""
_SANDBOXED = ("spawn", "elevateprivileges")
"""What a sandbox must not deny to a process that goes to the background: QEMU 7.2 dies of it, without a word."""
_MASTER_KEY = "masterKey0"
"""libvirt's name for it."""
_KVM = ("kvm", "qemu-kvm")
_CLEARED = 256 << 10
_DEFAULT_MEMORY = 128 << 20
_MORE = 8 << 10
"""QEMU before 9.0 without KVM loses writes when it migrates memory of whole 256 KiB: docs/migrate.md."""


def accelerator(text: str) -> str:
    """What a command wants its guest run by: kvm, tcg; empty: whatever there is."""
    wanted: list[str] = []
    found = command(text)
    for pair in pairs(found.arguments):
        if pair.option == "-enable-kvm":
            wanted.append("kvm")
        elif pair.option == "-accel":
            wanted.append(read(pair.text, "accel").get("accel"))
        elif pair.option in ("-machine", "-M"):
            wanted += filter(None, read(pair.text, "type").get("accel").split(":"))
    if not wanted:
        return "kvm" if PurePath(found.program).name in _KVM else "tcg"
    return wanted[0] if len(set(wanted)) == 1 else ""


def architecture(text: str) -> str:
    """The machine that a command's program is made for: x86_64, aarch64; empty: it does not say."""
    name = PurePath(command(text).program).name
    return name.removeprefix("qemu-system-") if name.startswith("qemu-system-") else ""


def arguments(text: str, guest: Guest, place: Place) -> list[str]:
    """The arguments of QEMU, whose program is not among them, for a guest whose command is `text`."""
    found = command(text)
    given = pairs(found.arguments)
    others = {pair.word.start for pair in [*lent(given), *_listening(given, place)]}
    words = [word for pair in given if pair.word.start not in others for word in _here(pair, place)]
    said = {pair.option for pair in given}
    if "-name" not in said:
        words += ["-name", f"guest={quote_option(guest.name)}"]
    if "-uuid" not in said:
        words += ["-uuid", guest.uuid]
    words += ["-machine", f"type={quote_option(place.machine)}"]
    if accelerator(text) == "kvm" and PurePath(found.program).name in _KVM and not _accelerated(given):
        words += ["-accel", "kvm"]
    if place.accel == "tcg" and not guest.memory % _CLEARED and not _fixed(given):
        words += ["-m", f"size={(guest.memory + _MORE) // 1024}K"]
    words += ["-chardev", f"socket,id=storkit-qmp,path={quote_option(place.qmp)},server=on,wait=off"]
    words += ["-mon", "chardev=storkit-qmp,mode=control", "-pidfile", place.pidfile]
    return [*words, *(["-incoming", "defer", "-S"] if place.incoming else []), "-daemonize"]


def grows(text: str) -> bool:
    """Whether a command's guest has more memory than the command says, when storkit starts it without KVM."""
    given = pairs(command(text).arguments)
    said = [read(pair.text, "size").get("size") for pair in given if pair.option == "-m"]
    return not (memory_size(said[-1]) if said else _DEFAULT_MEMORY) % _CLEARED and not _fixed(given)


def lent(given: list[Pair]) -> list[Pair]:
    """What whoever ran a command had for that alone, as libvirt's log has it: monitors by descriptors, and the key for
    secrets, where there are none."""
    monitors = [pair for pair in given if pair.option == "-mon"]
    names = {read(pair.text, "chardev").get("chardev") for pair in monitors}
    sockets: dict[str, Pair] = {}
    for pair in given:
        if pair.option == "-chardev":
            argument = read(pair.text, "backend")
            if argument.get("id") in names and argument.part("fd"):
                sockets[argument.get("id")] = pair
    keys = [pair for pair in given if _MASTER_KEY in pair.text]
    keys = keys if len(keys) == 1 and keys[0].option == "-object" else []
    return [
        *keys,
        *sockets.values(),
        *(pair for pair in monitors if read(pair.text, "chardev").get("chardev") in sockets),
    ]


def _listening(given: list[Pair], place: Place) -> Iterator[Pair]:
    """The command's own monitors whose sockets somebody listens at here: the same guest's on another host of this
    machine, or anybody's. It can do without them."""
    taken: set[str] = set()
    for pair in given:
        if pair.option == "-chardev" and read(pair.text, "backend").get("path") in place.listening:
            taken.add(read(pair.text, "backend").get("id"))
    monitors = {read(pair.text, "chardev").get("chardev") for pair in given if pair.option == "-mon"}
    for pair in given:
        if pair.option in ("-qmp", "-qmp-pretty", "-monitor") and pair.text.startswith("unix:"):
            if read(pair.text.removeprefix("unix:"), "path").get("path") in place.listening:
                yield pair
        elif (pair.option == "-chardev" and read(pair.text, "backend").get("id") in taken & monitors) or (
            pair.option == "-mon" and read(pair.text, "chardev").get("chardev") in taken
        ):
            yield pair


def warnings(text: str) -> list[str]:
    """What of a command's file storkit does not do."""
    others = [f"line {word.line}: {word.text}" for word in command(text).others]
    return [f"storkit starts QEMU alone, and not what else stands there ({'; '.join(others)})"] if others else []


def _accelerated(given: list[Pair]) -> bool:
    return any(pair.option in ("-enable-kvm", "-accel") or "accel=" in pair.text for pair in given)


def _fixed(given: list[Pair]) -> bool:
    """Whether the memory's size stands elsewhere too, and so cannot be another."""
    return any(pair.option in ("-numa", "-object") and "memory-backend" in pair.text for pair in given) or any(
        pair.option == "-numa" and "mem" in pair.text for pair in given
    )


def _here(pair: Pair, place: Place) -> Iterator[str]:
    """An option as it is said to a process in the background, whose arguments everybody can read."""
    option, text = pair.option, pair.text
    if found := secret(text):
        argument, key = found
        file = f"{place.secrets}/{key.value}"
        new = {"file": file} if option == "-object" else {"password-secret": key.value}
        if option != "-object":
            yield from ("-object", f"secret,id={key.value},file={quote_option(file)}")
        yield from (option, edited(text, argument.replaced("", [key], new)))
        return
    stdio = re.fullmatch(r"(?:mon:|chardev:)?stdio", text)
    if option in _LEFT_OUT or (option in ("-qmp", "-qmp-pretty") and stdio):
        return
    if option in ("-nographic", "-curses") or (option == "-display" and text.startswith("curses")):
        yield from ("-display", "none")
    elif option in _TERMINAL and stdio:
        yield from (option, _TERMINAL[option])
    elif option == "-sandbox":
        argument = read(text, "enable")
        gone = [key for key in argument.parts[1:] if key.key in _SANDBOXED and key.value == "deny"]
        yield from (option, edited(text, argument.without(gone)))
    elif option == "-chardev" and read(text, "backend").get("backend") == "stdio":
        argument = read(text, "backend")
        mux = ",mux=on" if argument.get("mux") == "on" else ""
        yield from (option, f"null,id={quote_option(argument.get('id'))}{mux}")
    else:
        yield pair.word.text
        if pair.value is not None and option:
            yield text
