"""What shows User-Mode Linux a disk that it cannot open, and what is not passed on to it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from storkit.core.errors import Unsupported
from storkit.core.guest import Boot, Disk, Guest, Nic
from storkit.core.model import DiskSource
from storkit.guests.limits import card_problems
from storkit.guests.render import render
from storkit.hypervisors._uml import disks

GUEST = Guest(
    "g", "a8098c1a-f86e-41da-bd1a-00112444be1e", 64 << 20, hypervisor="uml", disks=[Disk("v"), Disk("w", readonly=True)]
)
RAW = DiskSource("file", "/srv/v.raw")
DEVICE = DiskSource("block", "/dev/storkit/v")
NBD = DiskSource("network", protocol="nbd", export="v", socket="/run/v.sock")
SECURE = replace(NBD, socket="", server="10.0.0.1", port=10809, tls="psk", tls_dir="/run/a,b", tls_user="b")
IMAGE = DiskSource("file", "/srv/v.qcow2", "qcow2")
RUN = Path("/run/uml")


def options(words: list[str], option: str) -> list[Any]:
    return [json.loads(word) for name, word in pairwise(words) if name == option]


def test_what_it_opens_itself_needs_no_daemon() -> None:
    assert disks.shown(RUN, [RAW, DEVICE]) == [RAW, DEVICE]
    assert disks.daemon_arguments(RUN, GUEST, [RAW, DEVICE]) == []


def test_all_else_is_shown_as_a_raw_file() -> None:
    assert disks.shown(RUN, [RAW, IMAGE]) == [RAW, DiskSource("file", "/run/uml/disk1")]
    words = disks.daemon_arguments(RUN, GUEST, [NBD, IMAGE])
    (first, second), exports = options(words, "--blockdev"), options(words, "--export")
    assert first["driver"] == "raw" and not first["read-only"] and first["file"]["export"] == "v"
    assert first["file"]["server"] == {"type": "unix", "path": "/run/v.sock"}
    assert second["driver"] == "qcow2" and second["read-only"] and second["file"]["filename"] == "/srv/v.qcow2"
    assert [(each["mountpoint"], each["writable"]) for each in exports] == [
        ("/run/uml/disk0", True), ("/run/uml/disk1", False),
    ]  # fmt: skip
    assert {each["allow-other"] for each in exports} == {"off"}


def test_an_encrypted_export_is_opened_with_its_key() -> None:
    words = disks.daemon_arguments(RUN, GUEST, [SECURE, RAW])
    assert words[:2] == ["--object", "tls-creds-psk,id=tls-disk0,endpoint=client,dir=/run/a,,b,username=b"]
    (node,) = options(words, "--blockdev")
    assert node["file"]["tls-creds"] == "tls-disk0" and node["file"]["server"]["host"] == "10.0.0.1"
    x509 = disks.daemon_arguments(RUN, GUEST, [replace(SECURE, tls="x509", tls_user=""), RAW])
    assert x509[1].endswith("verify-peer=on")


@pytest.mark.parametrize("word", ["ubd7=/etc/shadow", "ubda=/etc/shadow", "mem=1G", "iomem=x,/etc/shadow", "umid=x"])
def test_words_that_open_files_are_refused(word: str) -> None:
    for guest in (replace(GUEST, boot=Boot(cmdline=f"rw {word}")), replace(GUEST, extra=[word])):
        with pytest.raises(Unsupported, match="for storkit to say"):
            render(guest, [RAW, DEVICE])


def test_cards_are_those_that_it_has() -> None:
    member = replace(GUEST, nics=[Nic(kind="group", group="239.192.1.1:20000")])
    assert card_problems(member, "uml") == card_problems(member, "qemu") == []
    (problem,) = card_problems(replace(GUEST, nics=[Nic(kind="user")]), "uml")
    assert "uml has no card of kind 'user'" in problem.message and "group" in problem.hint
    assert card_problems(member, "xl")[0].hint == "name a bridge"
