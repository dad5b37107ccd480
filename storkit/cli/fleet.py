"""`storkit fleet ...`."""

from __future__ import annotations

import json
import os
import shlex
from typing import TYPE_CHECKING, Any

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import UsageError
from storkit.core.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace

    from storkit.api import Entrance, FleetView


def create(session: Session, options: Namespace) -> None:
    from storkit.api import FleetWish

    wish = FleetWish(
        options.image, options.count, options.on, options.memory, options.vcpus, options.hypervisor, options.kernel,
        options.initrd, options.cmdline, options.bridge, options.set, options.identity, options.ttl,
    )  # fmt: skip
    view = session.site.fleets.create(options.name, wish, options.start)
    for what in view.unset:
        session.say(f"the members of fleet {view.fleet.name} have in common: {what}")
    session.result(_data(view), _shown(view))


def list_(session: Session, options: Namespace) -> None:
    views = session.site.fleets.listing()
    rows = [
        (view.fleet.name, view.fleet.image, len(view.members), view.running, ", ".join(view.fleet.hosts),
         view.fleet.expires or "-")
        for view in views
    ]  # fmt: skip
    header = ("NAME", "IMAGE", "MEMBERS", "RUNNING", "HOSTS", "EXPIRES")
    session.result([_data(view) for view in views], output.table(header, rows))


def show(session: Session, options: Namespace) -> None:
    view = session.site.fleets.show(options.name)
    session.result(_data(view), _shown(view))


def start(session: Session, options: Namespace) -> None:
    names = session.site.fleets.start(options.name, options.members)
    session.result({"fleet": options.name, "started": names}, f"{_count(names)} run")


def stop(session: Session, options: Namespace) -> None:
    names = session.site.fleets.stop(options.name, options.members, options.force, options.timeout)
    session.result({"fleet": options.name, "stopped": names}, f"{_count(names)} stopped")


def reset(session: Session, options: Namespace) -> None:
    names = session.site.fleets.reset(options.name, _some(options))
    session.result({"fleet": options.name, "reset": names}, f"{_count(names)} set back to the image")


def replace(session: Session, options: Namespace) -> None:
    names = session.site.fleets.replace(options.name, _some(options), options.start)
    session.result({"fleet": options.name, "replaced": names}, f"{_count(names)} replaced")


def wait(session: Session, options: Namespace) -> None:
    names = session.site.fleets.wait(options.name, options.members, options.timeout)
    session.result({"fleet": options.name, "answer": names}, f"{_count(names)} let ssh in")


def run(session: Session, options: Namespace) -> int:
    said = session.site.fleets.run(options.name, options.words, options.members, options.timeout)
    lines = [f"{each.member}: {line}" for each in said for line in (each.stdout + each.stderr).splitlines() or [""]]
    session.result(codec.dump(said), "\n".join(lines))
    return max(each.status for each in said)


def ssh(session: Session, options: Namespace) -> None:
    door = session.site.fleets.enter(options.member)
    argv = door.argv(*options.words)
    session.site.close()
    os.execvp(argv[0], argv)


def console(session: Session, options: Namespace) -> None:
    from storkit.cli.inside.console import enter

    enter(session, session.site.fleets.member(options.member))


def inventory(session: Session, options: Namespace) -> None:
    doors = session.site.fleets.doors(options.name)
    data = _ansible(options.name, doors)
    # JSON is YAML (YAML 1.2, 1.3).
    text = "\n".join(_ssh_config(door) for door in doors) if options.ssh else json.dumps(data, indent=2)
    session.result(data, text)


def destroy(session: Session, options: Namespace) -> None:
    session.result({"destroyed": session.site.fleets.destroy(options.name)}, f"fleet {options.name} is no more")


def sweep(session: Session, options: Namespace) -> None:
    names = session.site.fleets.sweep()
    session.result({"destroyed": names}, "\n".join(f"fleet {name} is no more" for name in names))


def _some(options: Namespace) -> list[str]:
    if bool(options.members) == options.all:
        raise UsageError("name the members, or say --all", f"storkit fleet show {options.name}")
    return list(options.members)


def _count(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)})"


def _data(view: FleetView) -> dict[str, Any]:
    data: dict[str, Any] = codec.dump(view.fleet)
    for key in ("laid", "base", "width", "made", "build"):
        del data[key]
    return {**data, "members": codec.dump(view.members), "unset": view.unset}


def _shown(view: FleetView) -> str:
    fleet = view.fleet
    lines: list[tuple[str, object]] = [
        ("name", fleet.name),
        ("image", f"{fleet.image}, {fleet.image_uuid}"),
        ("members", f"{len(view.members)}, {view.running} running"),
        ("memory", f"{format_size(fleet.memory)} each"),
        ("identity", _identity(view)),
    ]
    lines += [("in common", what) for what in view.unset]
    lines += [("expires", fleet.expires)] if fleet.expires else []
    rows = [(each.name, each.status, each.host, each.address or "-") for each in view.members]
    return f"{output.fields(lines)}\n\n{output.table(('MEMBER', 'STATE', 'HOST', 'ADDRESS'), rows)}"


def _identity(view: FleetView) -> str:
    """How its clones were made machines of their own."""
    if view.fleet.seeded:
        return "cloud-init takes it from a seed disk"
    return "written into each clone" if view.fleet.base else "none but their hardware's"


def _ansible(name: str, doors: list[Entrance]) -> dict[str, Any]:
    hosts = {}
    for door in doors:
        options = door.options
        rest = {key: value for key, value in options.items() if key not in ("HostName", "Port", "User", "IdentityFile")}
        hosts[door.member] = {
            "ansible_host": options["HostName"],
            "ansible_port": door.port,
            "ansible_user": options["User"],
            "ansible_ssh_private_key_file": door.key,
            "ansible_ssh_common_args": shlex.join(f"-o{key}={value}" for key, value in rest.items()),
        }
    return {"all": {"children": {name.replace("-", "_"): {"hosts": hosts}}}}


def _ssh_config(door: Entrance) -> str:
    return "\n".join([f"Host {door.member}", *(f"    {key} {value}" for key, value in door.options.items())])
