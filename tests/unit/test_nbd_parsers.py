"""What nbd reads from tools' output, and what it builds for them: no server is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from storkit.core.errors import ServiceUnreachable, UsageError
from storkit.system.block.fingerprint import spread
from storkit.tech.grants import host_slug
from storkit.tech.nbd.arguments import x509_authorization
from storkit.tech.nbd.attach import parse_dump, parse_listing
from storkit.tech.nbd.names import export_name

DATA = Path(__file__).parent / "data"


def test_listing_of_qemu_nbd() -> None:
    (export,) = parse_listing((DATA / "qemu-nbd-7.2-list.txt").read_text())
    assert export.name == "disk@n"
    assert export.description.startswith("storkit:") and export.description.count(":") == 2
    assert export.size == 64 << 20
    assert not export.writable
    assert parse_listing("exports available: 0\n") == []


def test_dump_of_qemu_io() -> None:
    text = (DATA / "qemu-io-7.2-read.txt").read_text()
    assert parse_dump(text, [(4096, 48), (0, 16)]) == [b"storkit!" * 6, bytes(16)]
    with pytest.raises(ServiceUnreachable, match="64 bytes"):
        parse_dump(text, [(4096, 4096)])


@pytest.mark.parametrize("size", [512, 4096, 4608, 65536, 1 << 30, (1 << 40) + 512])
def test_spread_of_blocks(size: int) -> None:
    offsets = spread("2b5e0f0e-7d3c-4c53-9a55-0e8c9c2f7a11", size)
    assert offsets == sorted(set(offsets)) and len(offsets) <= 16
    assert offsets[0] == 0 and offsets[-1] == (size - 1) // 4096 * 4096
    assert all(offset % 4096 == 0 for offset in offsets)
    assert size < 1 << 30 or len(offsets) == 16
    assert size < 1 << 30 or offsets != spread("another", size)


def test_export_names_are_safe_and_distinct() -> None:
    clients = ["a", "local:/tmp/b", "local:/tmp-b", "local--tmp-b", "x" * 200, "x" * 201, "..", "é", ""]
    assert len({host_slug(client) for client in clients}) == len(clients)
    assert export_name("disk", "a") == "disk@a"
    for client in clients:
        assert set(host_slug(client)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-~")
        assert host_slug(client) not in ("", ".", "..") or client == ""


@pytest.mark.parametrize("client", ["*", "a,CN=b", "a b", "local:/tmp/b"])
def test_names_that_no_certificate_may_have(client: str) -> None:
    with pytest.raises(UsageError):
        x509_authorization(client)
