"""`storkit hooks ...`, for people, and `storkit hook ...`, which hypervisors' scripts call."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import StorkitError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from storkit.api import Installed


def libvirt(options: Namespace) -> int:
    """1, and why on stderr, if the guest must not go on."""

    def act() -> None:
        from storkit.api import hooks

        words = (options.guest, options.operation, options.sub, options.extra)
        hooks.libvirt(words, sys.stdin.buffer.read(), _file(options))

    return _carried_out(act)


def xen(options: Namespace) -> int:
    """1, and why on stderr, if the domain must not have the disk, or it could not be given up."""

    def act() -> None:
        from storkit.api import hooks

        hooks.xen(options.event, os.environ.get("XENBUS_PATH", ""), _file(options))

    return _carried_out(act)


def _carried_out(act: Callable[[], None]) -> int:
    """The exit status of a hook: whatever goes wrong, there is never a traceback."""
    try:
        act()
    except StorkitError as error:
        output.explain(error)
        return 1
    except Exception as error:
        output.say(f"storkit: a bug in storkit: {type(error).__name__}: {error}")
        output.advise("report it; storkit hooks remove lets guests start without it")
        return 1
    return 0


def install(session: Session, options: Namespace) -> None:
    from storkit.api import InstallWish, hooks

    _refuse_dry_run(session)
    wish = InstallWish(
        options.name or "",
        dict(_pair(each) for each in options.manager),
        options.identity or "",
        tuple(options.address),
        tuple(options.volumes),
        tuple(options.set),
        options.state or "",
        _file(options),
    )
    found = hooks.install(wish)
    _show(session, found)
    if "libvirt" in found.scripts:
        output.say("libvirt looks for new hooks when it is reloaded: systemctl reload libvirtd")


def status(session: Session, options: Namespace) -> int:
    """7 if a manager does not answer."""
    from storkit.api import hooks

    found = hooks.status(_file(options))
    _show(session, found)
    return 7 if any(found.managers.values()) else 0


def remove(session: Session, options: Namespace) -> None:
    from storkit.api import hooks

    _refuse_dry_run(session)
    gone = hooks.remove()
    session.result({"removed": gone}, "\n".join(f"{path} is removed" for path in gone) or "no hook is installed")


def admit(session: Session, options: Namespace) -> None:
    from storkit.api import AdmitWish, hooks

    _refuse_dry_run(session)
    wish = AdmitWish(
        options.host,
        tuple(options.volumes),
        options.address or "",
        options.here,
        options.remove,
        options.from_inventory or "",
        Path(options.key) if options.key else None,
        _file(options),
    )
    done = hooks.admit(wish, session.site.inventory)
    data = {"file": str(done.file), "guest_hosts": codec.dump(done.accepted.guest_hosts), "authorized_keys": done.line}
    session.result(data, done.line)
    output.say(f"{done.file} is written: it holds for every key that starts `storkit agent` here")
    if not options.remove and not options.key:
        output.say(f"the line above, with the key of host {options.host}, belongs into authorized_keys here")


def _show(session: Session, found: Installed) -> None:
    rows = [(name, path or "not installed") for name, path in found.scripts.items()]
    rows += [(f"manager {name}", why or "answers") for name, why in found.managers.items()]
    data = {
        "file": str(found.file),
        "name": found.content.name,
        "scripts": found.scripts,
        "managers": {name: each.url for name, each in found.content.managers.items()},
        "silent": {name: why for name, why in found.managers.items() if why},
    }
    session.result(data, output.fields([("this host", found.content.name), ("file", str(found.file)), *rows]))


def _refuse_dry_run(session: Session) -> None:
    if session.options.dry_run:
        raise UsageError("there is no plan of it to show", "storkit hooks status shows what there is")


def _pair(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not equals:
        raise UsageError(f"--manager {text}: it is not NAME=URL", "--manager s=ssh://root@10.0.0.1")
    return name, url


def _file(options: Namespace) -> Path | None:
    return Path(options.file) if options.file else None
