"""Reservations that LIO keeps through a restart: what it wrote is read, and given back to those who may have it."""

from __future__ import annotations

import os
from pathlib import Path

from storkit.tech.iscsi import aptpl

DATA = Path(__file__).with_name("data")
A, B = "iqn.2026-11.org.storkit:host.a", "iqn.2026-11.org.storkit:host.b"
SERIAL = "0c9f3f0e-1111-2222-3333-444455556601"


def test_registrations_are_read() -> None:
    text = (DATA / "lio-6.1-res_pr_registered_i_pts.txt").read_text()
    assert aptpl.parse_registered(text) == {A: "00000000000000a1", B: "deadbeef000000b2"}
    assert aptpl.parse_registered("SPC-3 PR Registrations:\nNone\n") == {}


def test_a_host_is_taken_out_of_the_file_and_the_others_stay() -> None:
    text = (DATA / "lio-6.1-aptpl.txt").read_text()
    assert [node for node, _ in aptpl.parse_entries(text)] == [A, B]
    without = aptpl.without(text, [A])
    assert [node for node, _ in aptpl.parse_entries(without)] == [B]
    assert without in text and aptpl.without(text, ["iqn.x"]) == text
    assert aptpl.without(text, [A, B]) == ""


def test_only_those_who_may_get_their_registration_back(tmp_path: Path) -> None:
    text = (DATA / "lio-6.1-aptpl.txt").read_text()
    old, new = tmp_path / "old", tmp_path / "new"
    for database in (old, new):
        (database / "pr").mkdir(parents=True)
    assert aptpl.kept([new, old], SERIAL, [A, B]) == []
    aptpl.file(old, SERIAL).write_text(text)
    (metadata,) = aptpl.kept([new, old], SERIAL, [B])
    fields = dict(field.split("=", 1) for field in metadata.split(","))
    assert (fields["initiator_node"], fields["sa_res_key"], fields["mapped_lun"]) == (B, str(0xDEADBEEF000000B2), "0")
    aptpl.file(new, SERIAL).write_text(aptpl.without(text, [B]))
    os.utime(aptpl.file(old, SERIAL), ns=(1, 1))
    assert aptpl.kept([new, old], SERIAL, [B]) == []  # the file that was written last counts
    aptpl.forget([new, old], SERIAL, [A])
    assert [node for node, _ in aptpl.parse_entries(aptpl.file(old, SERIAL).read_text())] == [B]
    aptpl.forget([new, old], SERIAL)
    assert not aptpl.file(new, SERIAL).exists() and not aptpl.file(old, SERIAL).exists()
    aptpl.forget([new, old], SERIAL)
