"""Generic netlink as bytes, and the kernel's NBD devices as sysfs shows them."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from storkit.core.model import DiskSource
from storkit.tech.nbd.kernel import KernelDevice, relay_arguments
from storkit.tech.nbd.netlink import Device, attribute, attributes, devices, message, messages, sockets_attribute

# What Linux 6.1 answered: to NBD_CMD_CONNECT the device's number, then an acknowledgement; to NBD_CMD_RECONFIGURE with
# another identifier than the device's an error.
CONNECTED = bytes.fromhex("1c0000001c000000020000009d040000010100000800010000000000")
ACKNOWLEDGED = bytes.fromhex("2400000002000001020000009d04000000000000680000001c0005000200000000000000")
REFUSED = bytes.fromhex(
    "5400000002000000030000009d040000eaffffff400000001c0005000300000000000000030100000800010000000000"
    "12000a0073746f726b69743a6f74686572000000100007800c0001800800010003000000"
)


def test_attributes_are_padded_and_found_again() -> None:
    data = attribute(10, b"storkit:x\0") + attribute(1, struct.pack("=I", 7))
    assert len(data) % 4 == 0
    assert attributes(data) == {10: b"storkit:x\0", 1: b"\7\0\0\0"}


def test_connections_are_nested_two_deep() -> None:
    outer = attributes(sockets_attribute([5]))
    assert attributes(attributes(outer[7])[1]) == {1: struct.pack("=I", 5)}
    assert len(outer[7]) * 2 == len(attributes(sockets_attribute([5, 6]))[7])


def test_a_request_says_its_length_family_command_and_number() -> None:
    sent = message(21, 1, 2, attribute(1, b"abcd"))
    assert struct.unpack_from("=IHHII", sent) == (len(sent), 21, 5, 2, 0)
    assert struct.unpack_from("=BBH", sent, 16) == (1, 1, 0)


def test_the_kernels_answers_are_read_one_after_the_other() -> None:
    (kind, number, body), (ack, _, status) = messages(CONNECTED + ACKNOWLEDGED)
    assert (kind, number, attributes(body[4:])) == (28, 2, {1: struct.pack("=I", 0)})
    assert (ack, struct.unpack_from("=i", status)) == (2, (0,))
    ((_, number, status),) = messages(REFUSED)
    assert (number, struct.unpack_from("=i", status)) == (3, (-errno.EINVAL,))


def test_what_is_cut_short_ends_the_list_instead_of_the_program() -> None:
    assert list(messages(b"\0" * 16)) == [] and attributes(b"\1\0\1\0") == {}


def test_only_devices_with_an_identifier_are_found(tmp_path: Path) -> None:
    for name, backend in (
        ("nbd0", None),
        ("nbd3", "storkit:u:k:rw:v@a+1\n"),
        ("nbd12", "other\n"),
        ("sda", "storkit:"),
    ):
        (tmp_path / name).mkdir()
        if backend:
            (tmp_path / name / "backend").write_text(backend)
    assert devices(tmp_path) == [Device(3, "storkit:u:k:rw:v@a+1"), Device(12, "other")]
    assert devices(tmp_path)[0].path == "/dev/nbd3"


@pytest.mark.parametrize("writable", [True, False])
def test_a_relay_has_the_right_of_its_link_and_its_secrets_in_files(writable: bool) -> None:
    wire = DiskSource("network", protocol="nbd", export="v@a+1", server="::1", port=10809, tls="psk", tls_dir="/k")
    credential = {"qom-type": "tls-creds-psk", "id": "tls0", "endpoint": "client", "dir": "/k"}
    words = relay_arguments(KernelDevice("v", "u", 512, writable, wire, credential))
    assert words[0] == "--object" and words[-2] == "--export"
    assert f'"read-only": {"false" if writable else "true"}' in words[3]
    assert f'"writable": {"true" if writable else "false"}' in words[-1]
    assert '"tls-creds": "tls0"' in words[3]
