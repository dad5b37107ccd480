"""`storkit hooks admit`, at a manager: which hosts' hooks may ask for which volumes, in this host's own file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from storkit.core import codec
from storkit.core.errors import NotFound, StorkitError, UsageError, raise_problems
from storkit.core.host import state_directory
from storkit.core.identities import check_name
from storkit.core.inventory import Inventory
from storkit.hosts.accept import Accepted, GuestHost, default_file, dumps, load, parse, save
from storkit.hosts.setup import Setup, remembered, setup

_KEY = re.compile(r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?")
"""A public key as in a file of ssh-keygen(1): its type, the key, a comment."""


@dataclass(frozen=True, slots=True)
class AdmitWish:
    """Which host's hooks are to be let ask for what."""

    host: str
    volumes: Sequence[str] = ()
    """Globs of POOL/NAME: all of them, from now on. None: as they were."""
    address: str = ""
    """Where the host comes from; empty, and not `here`: as it was."""
    here: bool = False
    """It is on this machine."""
    remove: bool = False
    """It is admitted no longer."""
    from_inventory: str = ""
    """The host of this machine's inventory that this host is; empty: as a coordinator last told it."""
    key: Path | None = None
    """The file of the host's public key."""
    file: Path | None = None
    """This host's own file; None: the usual one."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a host's hooks may ask for."""

    file: Path
    accepted: Accepted
    line: str
    """For authorized_keys: what binds the host's key to it; empty: it is admitted no longer."""


def admit(wish: AdmitWish, inventory: Inventory) -> Admission:
    """Write into this host's own file what another host's hooks may ask for. Raises everything that is wrong at once;
    then nothing is written."""
    check_name("host", wish.host)
    file = (wish.file or default_file()).absolute()
    before = load(file) or Accepted()
    if wish.remove:
        if wish.host not in before.guest_hosts:
            raise NotFound(
                f"{file} admits no host {wish.host}", f"it admits: {', '.join(before.guest_hosts) or 'none'}"
            )
        left = {name: each for name, each in before.guest_hosts.items() if name != wish.host}
        after = replace(before, guest_hosts=left)
        save(file, after)
        return Admission(file, after, "")
    after = _with_guest_host(_as_told(before, wish, inventory), wish)
    parse(dumps(after), str(file))
    line = f'command="storkit agent --for {wish.host}",restrict {_key(wish.key)}'
    save(file, after)
    return Admission(file, after, line)


def _as_told(before: Accepted, wish: AdmitWish, inventory: Inventory) -> Accepted:
    """What the file says of this host itself: its name, its address, the pools that are asked for, how they go."""
    told: Setup | None
    if wish.from_inventory:
        told = setup(inventory, inventory.host(wish.from_inventory))
    else:
        told = remembered(Path(before.state or state_directory()).absolute())
    if told is None:
        if before.host:
            return before
        raise NotFound(
            "this host was never told its name and its pools",
            "run `storkit host check` where the inventory is; or bring it here: storkit hooks admit --from-inventory",
        )
    pools: dict[str, dict[str, Any]] = dict(before.pools)
    ways = dict(before.transport_of)
    for name, pool in told.pools.items():
        if any(fnmatchcase(name, each.partition("/")[0]) for each in wish.volumes):
            pools.setdefault(name, {"type": pool.type, **pool.settings})
            if wish.from_inventory:
                ways[name] = inventory.transport(name).partition(":")[2]
            elif len(told.served_by) == 1:
                ways.setdefault(name, told.served_by[0].partition(":")[2])
    transports = {name: {**settings, **before.transports.get(name, {})} for name, settings in told.transports.items()}
    return replace(
        before,
        host=told.host,
        address=told.address or before.address,
        state=before.state or told.state,
        pools=pools,
        transport_of=ways,
        transports={**before.transports, **transports},
    )


def _with_guest_host(accepted: Accepted, wish: AdmitWish) -> Accepted:
    known = accepted.guest_hosts.get(wish.host)
    volumes = list(wish.volumes) or (known.volumes if known else [])
    address = "" if wish.here else wish.address or (known.address if known else "")
    problems: list[StorkitError] = []
    if not volumes:
        problems.append(UsageError(f"host {wish.host} may have no volume yet", "--volumes 'POOL/*', or POOL/NAME"))
    for each in volumes:
        pool = each.partition("/")[0]
        if each.count("/") != 1:
            problems.append(UsageError(f"{each!r} is no POOL/NAME", f"--volumes '{pool or 'POOL'}/*' is all of a pool"))
        elif not any(fnmatchcase(name, pool) for name in accepted.pools):
            names = ", ".join(accepted.pools) or "none"
            problems.append(
                NotFound(f"this host has no pool {pool}", f"it has: {names}; storkit host accept pool:NAME")
            )
    if not address and not wish.here:
        hint = "--address ADDRESS; or --here, for this machine itself"
        problems.append(UsageError(f"it is not said where host {wish.host} comes from", hint))
    if address and not accepted.address:
        message = f"this host has no address, so host {wish.host} would not reach its servers"
        problems.append(UsageError(message, "write address = into the inventory's [hosts], and let it be told"))
    raise_problems(problems)
    guest_host = codec.load(GuestHost, {"volumes": volumes, "address": address}, f"host {wish.host}")
    return replace(accepted, guest_hosts={**accepted.guest_hosts, wish.host: guest_host})


def _key(file: Path | None) -> str:
    if file is None:
        return "THE-PUBLIC-KEY"
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the key {file} cannot be read: {error}", "name the file that ends with .pub") from None
    if not _KEY.fullmatch(text) or "PRIVATE" in text:
        raise UsageError(f"{file} is no public key", "name the file that ends with .pub")
    return text
