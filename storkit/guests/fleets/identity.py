"""Who a member of a fleet is, as the files that say so in it: in its root's file system, written there while nobody has
it mounted, or for cloud-init on a disk beside it (seed)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from storkit.core.errors import Unsafe
from storkit.core.guest import Guest, derived_mac
from storkit.core.identities import GuestName, Line, Uuid
from storkit.core.imagefiles import FileToLay, Inside, Laid, Piece
from storkit.core.model import Secret
from storkit.guests.fleets.keys import SEED_BYTES, FleetKeys, MemberKeys
from storkit.guests.fleets.record import MOST, Fleet

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
SHARED_KEYS = [f"/etc/ssh/ssh_host_{kind}_key{end}" for kind in ("rsa", "ecdsa", "dsa") for end in ("", ".pub")]
"""Host keys that a golden image may have, and every clone with it."""
_USER_NETWORK = ("10.0.2.15/24", "10.0.2.2", "10.0.2.3")
"""The address, gateway and name server that QEMU's user network has for its guest (qemu(1), -netdev user)."""
_HOST_NAME_MAX = 63


@dataclass(frozen=True, slots=True)
class MemberIdentity:
    """Who a member is."""

    name: GuestName
    uuid: Uuid
    """Its guest's."""
    address: Line = ""
    """In the fleet's own network, with its prefix; empty: its network gives it one."""
    macs: list[Line] = field(default_factory=list)

    @property
    def machine_id(self) -> str:
        """What machine-id(5) has: the guest's UUID, as systemd takes it from the firmware itself."""
        return self.uuid.replace("-", "")

    @property
    def initiator(self) -> str:
        """The iSCSI initiator's name (RFC 3721, 1.1), in the form that Debian gives it."""
        return f"iqn.1993-08.org.debian:01:{hashlib.sha256(self.uuid.encode()).hexdigest()[:12]}"


def identity(fleet: Fleet, guest: Guest) -> MemberIdentity:
    """Who a member's guest is."""
    address = "" if fleet.bridge else str(fleet.address(guest.name))
    macs = [guest.mac(number) for number in range(len(guest.nics))]
    return MemberIdentity(guest.name, guest.uuid, address, macs)


def hosts_lines(fleet: Fleet) -> str:
    """Names and addresses of all members that the fleet can have, as hosts(5) has them."""
    if fleet.bridge:
        return ""
    most = min(10**fleet.width - 1, MOST)
    network = fleet.network
    return "".join(f"{network[number]}\t{fleet.member(number)}\n" for number in range(1, most + 1))


def to_lay(fleet: Fleet, keys: FleetKeys) -> list[FileToLay]:
    """What the volume has that all members are cloned from: what is alike in all, and a slot for what is not.

    With cloud-init in it that is the machine id alone, which cloud-init leaves as it is.
    """
    has = set(fleet.inside.has)
    nobody = MemberIdentity(fleet.member(1), fleet.uuid, "" if fleet.bridge else str(fleet.address(fleet.member(1))),
                      _example_macs(fleet))  # fmt: skip
    example = MemberKeys(keys.private, keys.public, Secret("0" * 2 * SEED_BYTES))
    slots = [FileToLay(path, "x" * len(content), mode, True) for path, mode, content in _files(nobody, example, has)]
    if fleet.seeded:
        return slots
    files = [
        FileToLay("/root/.ssh/authorized_keys", keys.public + "\n", 0o600),
        FileToLay("/etc/hosts", f"127.0.0.1\tlocalhost\n::1\tlocalhost\n{hosts_lines(fleet)}"),
    ]
    return [*files, *slots, *(FileToLay(path, "", absent=True) for path in SHARED_KEYS)]


def pieces(fleet: Fleet, who: MemberIdentity, keys: MemberKeys, laid: Sequence[Laid]) -> list[Piece]:
    """What is written into a member's disk: the content of each slot, at its place."""
    contents = {path: content for path, _, content in _files(who, keys, set(fleet.inside.has))}
    found: list[Piece] = []
    for slot in laid:
        content = contents.get(slot.path, b"")
        if len(content) != slot.size or sum(extent.length for extent in slot.extents) != slot.size:
            raise Unsafe(f"{slot.path} of {who.name} does not fit into its place", "storkit fleet destroy, then create")
        begin = 0
        for extent in slot.extents:
            found.append(_piece(extent.offset, content[begin : begin + extent.length]))
            begin += extent.length
    return found


def unset(fleet: Fleet) -> list[str]:
    """What members have in common or lack, since it could not be set, in words for people."""
    inside, has = fleet.inside, set(fleet.inside.has)
    if not (fleet.bridge or fleet.enterable):
        return [f"no way out, nor in by ssh: {fleet.hypervisor} has no card of kind user", *_alike(fleet, inside, has)]
    return _alike(fleet, inside, has)


def _alike(fleet: Fleet, inside: Inside, has: set[str]) -> list[str]:
    if fleet.seeded:
        return [] if inside.filesystem and not inside.problem else [f"the machine id: {_why(fleet)}"]
    if not inside.filesystem or inside.problem:
        return [f"host name, machine id, SSH host keys and network: {_why(fleet)}"]
    missing = []
    if "sshd" not in has:
        missing.append("SSH: the image has no sshd")
    if not has & {"networkd", "ifupdown"}:
        missing.append("the network: the image has neither ifupdown nor an enabled systemd-networkd")
    return missing


def _why(fleet: Fleet) -> str:
    return fleet.inside.problem or "the image has no ext4 as its root, and no cloud-init was found in it"


def cloud_config(fleet: Fleet, who: MemberIdentity, keys: FleetKeys) -> dict[str, str]:
    """The files of cloud-init's data source NoCloud. JSON is YAML as well (YAML 1.2, 1.3)."""
    member = keys.members[who.uuid]
    files: list[dict[str, Any]] = [
        {"path": "/etc/iscsi/initiatorname.iscsi", "permissions": "0600", "content": _initiator(who)},
        {"path": "/etc/hosts", "append": True, "content": hosts_lines(fleet)},
    ]
    user = {
        "hostname": who.name,
        "fqdn": who.name,
        "preserve_hostname": False,
        "manage_etc_hosts": False,
        "disable_root": False,
        "ssh_deletekeys": True,
        "ssh_genkeytypes": ["ed25519"],
        "ssh_keys": {"ed25519_private": member.private.reveal(), "ed25519_public": member.public},
        "ssh_authorized_keys": [keys.public],
        "users": ["default", {"name": "root", "ssh_authorized_keys": [keys.public], "lock_passwd": True}],
        "random_seed": {"file": "/dev/urandom", "encoding": "base64",
                        "data": base64.b64encode(bytes.fromhex(member.seed.reveal())).decode()},
        "write_files": [each for each in files if each["content"]],
    }  # fmt: skip
    own = "#cloud-config\n" + json.dumps(user) + "\n"
    more = keys.cloud_config.reveal()
    meta = {"instance-id": who.uuid, "local-hostname": who.name}
    return {
        "meta-data": json.dumps(meta) + "\n",
        "user-data": _together(own, more) if more else own,
        "network-config": json.dumps(_netplan(who)) + "\n",
    }


def _together(own: str, more: str) -> str:
    """Two texts for cloud-init as one: what the second says beside the first is added, and takes nothing from it
    (cloud-init's documentation: "MIME multi-part archive", "Merging user data sections")."""
    from email.mime.multipart import MIMEMultipart
    from email.mime.text import MIMEText

    whole = MIMEMultipart(boundary=hashlib.sha256((own + more).encode()).hexdigest()[:40])
    for text, merged in ((own, ""), (more, "list(append)+dict(no_replace,recurse_array)+str()")):
        part = MIMEText(text, "cloud-config", "utf-8")
        if merged:
            part.add_header("Merge-Type", merged)
        whole.attach(part)
    return whole.as_string()


def put_back(fleet: Fleet, keys: FleetKeys) -> list[str]:
    """The files that make a clone a member, whoever has written them there: the paths."""
    by_cloud_init = ["/etc/hostname", "/etc/hosts", "/root/.ssh/authorized_keys", HOST_KEY, f"{HOST_KEY}.pub",
                     *SHARED_KEYS, "/etc/iscsi/initiatorname.iscsi"]  # fmt: skip
    laid = [file.path for file in to_lay(fleet, keys)]
    return list(dict.fromkeys([*laid, *(by_cloud_init if fleet.seeded else [])]))


def _netplan(who: MemberIdentity) -> dict[str, object]:
    """cloud-init's network configuration, version 2."""
    cards: dict[str, object] = {}
    for number, mac in enumerate(who.macs):
        match = {"match": {"macaddress": mac}}
        if who.address and number == len(who.macs) - 1:
            cards[f"card{number}"] = {**match, "addresses": [who.address]}
        else:
            cards[f"card{number}"] = {**match, "dhcp4": True}
    return {"version": 2, "ethernets": cards}


def _files(who: MemberIdentity, keys: MemberKeys, has: set[str]) -> Iterator[tuple[str, int, bytes]]:
    """Path, mode and content of the files that make a member itself, each as long in one as in the other."""
    if "systemd" in has or "cloud-init" not in has:
        yield "/etc/machine-id", 0o444, f"{who.machine_id}\n".encode()
    if "cloud-init" in has:
        return
    yield "/etc/hostname", 0o644, _padded(f"{who.name}\n", _HOST_NAME_MAX + 1)
    if "sshd" in has:
        yield HOST_KEY, 0o600, keys.private.reveal().encode()
        yield f"{HOST_KEY}.pub", 0o644, f"{keys.public}\n".encode()
    if "iscsi" in has:
        yield "/etc/iscsi/initiatorname.iscsi", 0o600, _initiator(who).encode()
    if "systemd" in has:
        yield "/var/lib/systemd/random-seed", 0o600, bytes.fromhex(keys.seed.reveal())
    for number, mac in enumerate(who.macs):
        if "networkd" in has:
            yield f"/etc/systemd/network/10-storkit{number}.network", 0o644, _networkd(who, number, mac)
        elif "ifupdown" in has:
            yield f"/etc/network/interfaces.d/storkit{number}", 0o644, _interface(who, number)
        if has & {"networkd", "ifupdown"}:
            link = f"[Match]\nMACAddress={mac}\n[Link]\nName=storkit{number}\n"
            yield f"/etc/systemd/network/10-storkit{number}.link", 0o644, link.encode()


def _networkd(who: MemberIdentity, number: int, mac: str) -> bytes:
    address, gateway, server = _addressing(who, number)
    lines = [f"Address={address}", f"Gateway={gateway}", f"DNS={server}"] if gateway else [f"Address={address}"]
    lines = lines if address else ["DHCP=ipv4"]
    return _padded("\n".join(["[Match]", f"MACAddress={mac}", "[Network]", *lines, ""]), 256)


def _interface(who: MemberIdentity, number: int) -> bytes:
    address, gateway, server = _addressing(who, number)
    name = f"storkit{number}"
    lines = [f"auto {name}", f"iface {name} inet {'static' if address else 'dhcp'}"]
    lines += [f"\taddress {address}"] if address else []
    lines += [f"\tgateway {gateway}", f"\tdns-nameservers {server}"] if gateway else []
    return _padded("\n".join([*lines, ""]), 256)


def _addressing(who: MemberIdentity, number: int) -> tuple[str, str, str]:
    """Address, gateway and name server of a card; none: it asks for them."""
    if not who.address:
        return "", "", ""
    return (who.address, "", "") if number == len(who.macs) - 1 else _USER_NETWORK


def _initiator(who: MemberIdentity) -> str:
    return f"InitiatorName={who.initiator}\n"


def _padded(text: str, size: int) -> bytes:
    """A text with empty lines after it."""
    return text.ljust(size, "\n").encode()


def _example_macs(fleet: Fleet) -> list[str]:
    return [derived_mac(fleet.uuid, number) for number in range(len(fleet.nics))]


def _piece(offset: int, data: bytes) -> Piece:
    return Piece(offset, Secret(base64.b64encode(data).decode()))


def sparse(image: bytes, grain: int = 2048) -> Iterable[Piece]:
    """What of an image is no zeros, for a volume that reads as zeros."""
    zeros = bytes(grain)
    begin = 0
    for at in range(0, len(image) + grain, grain):
        part = image[at : at + grain]
        if not part or part == zeros[: len(part)]:
            if at > begin:
                yield _piece(begin, image[begin:at])
            begin = at + grain
