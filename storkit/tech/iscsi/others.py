"""Targets, LUNs and backstores of this host that storkit did not make and that come near its own: for `host check`.

They are read by rtslib, as targetcli and the service that restores targets at boot do: what rtslib stumbles over stops
those too. Nothing is changed, and rtslib's RTSRoot, which sets the target's database, is not used.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storkit.core.backend import Site
from storkit.core.errors import StorkitError
from storkit.core.model import Finding
from storkit.system.block import holders
from storkit.system.block.configfs import entries
from storkit.tech.files.sidecar import is_pool
from storkit.tech.grants import GrantStore
from storkit.tech.iscsi.lio import CORE, FABRIC
from storkit.tech.iscsi.names import IscsiGrant, IscsiSettings
from storkit.tech.lvm import tools

_OWN = re.compile(r"/dev/mapper/storkit:[^:]+:export")
_TARGET = ("iqn.", "eui.", "naa.")
"""How the names of targets begin; there are other things beside them."""


def findings(site: Site, settings: IscsiSettings) -> list[Finding]:
    """What others have in the kernel's target that storkit cannot be beside, or should be known to be there; nothing
    where the kernel has none."""
    if not FABRIC.is_dir():
        return []
    import rtslib_fb as rtslib

    grants, _ = GrantStore(site, IscsiGrant).find()
    own = {grant.iqn for grant in grants}
    others = [name for name in entries(FABRIC) if name not in own and not name.startswith(f"{settings.prefix}:")]
    portals = {portal for grant in grants if grant.remote() for portal in grant.listens}
    fabric, units = rtslib.FabricModule("iscsi"), defaultdict[str, list[str]](list)
    found: list[Finding] = []
    for name in sorted(name for name in others if name.startswith(_TARGET)):
        try:
            found += _target(rtslib.Target(fabric, name, "lookup"), portals, units)
        except rtslib.RTSLibError as error:
            message = f"rtslib cannot read target {name} ({error}): targetcli and the restore of targets at boot fail"
            found.append(Finding(message, f"look at it, and give it another name: ls {FABRIC}/{name}"))
    return found + list(_backstores({grant.volume.path: grant.volume.name for grant in grants}, units))


def _target(target: Any, portals: set[str], units: dict[str, list[str]]) -> Iterator[Finding]:
    """What there is to say of somebody else's target; its LUNs go into `units`, by the path of their backstore."""
    for group in target.tpgs:
        for lun in group.luns:
            units[lun.storage_object.path].append(f"LUN {lun.lun} of target {target.wwn}")
        for portal in group.network_portals:
            at = f"{portal.ip_address}:{portal.port}"
            if at in portals:
                message = f"target {target.wwn}, which storkit did not make, listens at {at}, as storkit's targets do"
                hint = "leave it, or give storkit other portals: portals in [transports.iscsi]"
                yield Finding(message, hint, warning=True)


def _backstores(granted: dict[str, str], units: dict[str, list[str]]) -> Iterator[Finding]:
    """Somebody else's backstores on what is storkit's."""
    from rtslib_fb.tcm import StorageObject
    from rtslib_fb.utils import RTSLibError

    volumes = _Volumes(granted)
    for place in sorted(path for path in CORE.glob("*_*/*") if path.is_dir()):
        try:
            store = StorageObject.so_from_path(place)
            device = store.udev_path if store.plugin in ("block", "fileio", "pscsi") else ""
        except (RTSLibError, KeyError) as error:
            yield Finding(f"rtslib cannot read backstore {place.name} ({error})", f"ls {place}", warning=True)
            continue
        if device and not _OWN.fullmatch(device) and (whose := volumes.at(device)):
            name = f"{store.plugin}/{store.name}"
            offered = f", as {' and '.join(units[store.path])}" if store.path in units else ""
            message = f"backstore {name}, which storkit did not make, has {whose} open{offered}: its clients write too"
            yield Finding(message, f"targetcli /backstores/{store.plugin} delete {store.name}")


class _Volumes:
    """What is storkit's of this host's disks and files."""

    def __init__(self, granted: dict[str, str]) -> None:
        self._granted = {holders.kernel_name(path): f"volume {name}" for path, name in granted.items()}
        self._groups: dict[str, dict[str, str]] = {}

    def at(self, path: str) -> str:
        """Whose a device or file is, in words; empty: it is not storkit's."""
        device = holders.kernel_name(path)
        if not device:
            return f"the file {path} of a pool" if is_pool(Path(path).parent) else ""
        name, uuid = holders.mapped(device)
        if device in self._granted:
            return self._granted[device]
        if uuid.startswith(holders.OURS):
            return f"storkit's node {name}"
        return self._logical(name) if uuid.startswith("LVM-") else ""

    def _logical(self, mapped: str) -> str:
        group = holders.volume_group(mapped)
        if group not in self._groups:
            self._groups[group] = dict(_tagged(group))
        return self._groups[group].get(mapped, "")


def _tagged(group: str) -> Iterator[tuple[str, str]]:
    """Device-mapper's name of each logical volume that is a volume of storkit's."""
    try:
        volumes = tools.read(group).lvs.values()
    except StorkitError:
        return
    for volume in volumes:
        if "uuid" in volume.tags:
            yield "-".join(part.replace("-", "--") for part in (group, volume.name)), f"volume {volume.name}"
