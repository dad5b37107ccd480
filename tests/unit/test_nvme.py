"""NVMe/TCP: names and keys on the wire, what a namespace says of itself, and what the kernel shows of controllers."""

from __future__ import annotations

import base64
import uuid as uuids
import zlib
from pathlib import Path

import pytest

from storkit.core.errors import Unsafe, UsageError
from storkit.tech.nvme import controllers, names
from storkit.tech.nvme.names import TRUSTED, NvmeSettings

UUID = "0c9f3f0e-1111-4222-8333-444455556666"


def test_a_client_has_a_subsystem_and_a_name_for_each_volume_and_export() -> None:
    assert names.subsystem_nqn(UUID, "b") == f"nqn.2026-11.org.storkit:{UUID}:b"
    mine = names.host_nqn(UUID, "b", "0a1b2c3d")
    assert names.is_host(mine, UUID, "b")
    assert not names.is_host(mine, UUID, "c") and not names.is_host(f"{mine},nqn=x", UUID, "b")
    assert not names.is_host(mine.replace("0c9f", "1c9f"), UUID, "b")


def test_every_client_has_a_name_of_its_own_that_the_kernel_takes() -> None:
    clients = ["b", "B", "ssh://root@b", "ssh://root@c", "local:/srv/h1", "a.b-c_d"]
    found = {names.subsystem_nqn(UUID, client) for client in clients}
    assert len(found) == len(clients)
    assert all(len(name) < 223 and not set(name) & set(", /\n") for name in found)


def test_a_key_has_the_form_that_the_kernel_takes() -> None:
    version, transform, text, end = names.new_key().reveal().split(":")
    key = base64.b64decode(text)
    assert (version, transform, end, len(key)) == ("DHHC-1", "00", "", 36)
    assert key[32:] == zlib.crc32(key[:32]).to_bytes(4, "little")
    assert names.new_key() != names.new_key()


@pytest.mark.parametrize("said", ["yes", "true", TRUSTED.upper(), f"{TRUSTED} "])
def test_a_network_is_trusted_only_in_so_many_words(said: str) -> None:
    with pytest.raises(UsageError, match="does not say what it does") as refused:
        NvmeSettings(trusted_network=said)
    assert f'trusted_network = "{TRUSTED}"' in refused.value.hint
    assert NvmeSettings(trusted_network=TRUSTED).trusted_network


def descriptors(*pairs: tuple[int, bytes]) -> bytes:
    return b"".join(bytes([kind, len(data), 0, 0]) + data for kind, data in pairs).ljust(4096, b"\0")


def test_a_namespace_says_who_it_is() -> None:
    raw = uuids.UUID(UUID).bytes
    page = descriptors((1, b"12345678"), (2, raw), (3, raw), (4, b"\0"))
    assert controllers.parse_descriptors(page) == names.identity(UUID)
    other = descriptors((2, raw), (3, uuids.uuid4().bytes))
    assert controllers.parse_descriptors(other) != names.identity(UUID)


@pytest.mark.parametrize("page", [bytes(4096), descriptors((3, bytes(16))), descriptors((3, bytes(4)), (2, bytes(16))),
                                  b"\x03\x10\0\0" + bytes(8), b"\x03", b"\xff" * 4096])  # fmt: skip
def test_one_that_does_not_is_no_disk_of_ours(page: bytes) -> None:
    with pytest.raises(Unsafe):
        controllers.parse_descriptors(page)


def test_its_size_is_that_of_its_blocks_in_the_format_in_use() -> None:
    page = bytearray(4096)
    page[:8] = (2048).to_bytes(8, "little")
    page[26], page[128 + 2], page[128 + 4 + 2] = 0x11, 9, 12
    assert controllers.parse_size(bytes(page)) == 2048 * 4096


def test_the_kernel_s_controllers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "CONTROLLERS", tmp_path)
    ours = names.subsystem_nqn(UUID, "b")
    for name, nqn, address, state in (
        ("nvme0", "nqn.2014-08.org.nvmexpress:a-disk-of-this-machine", "0000:01:00.0", "live"),
        ("nvme1", ours, "traddr=10.0.0.1,trsvcid=4420,src_addr=10.0.0.2", "live"),
        ("nvme2", ours, "traddr=fd00::1,trsvcid=4421", "connecting"),
    ):
        (tmp_path / name).mkdir()
        for file, text in (("subsysnqn", nqn), ("address", address), ("state", state)):
            (tmp_path / name / file).write_text(f"{text}\n")
    (tmp_path / "nvme3").mkdir()  # it goes in this moment
    found = controllers.find(ours)
    assert [(each.name, each.portal, each.alive) for each in found] == [
        ("nvme1", "10.0.0.1:4420", True),
        ("nvme2", "[fd00::1]:4421", False),
    ]
    assert controllers.find() == found
