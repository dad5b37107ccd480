"""What a host knows of itself and of the managers of its guests' disks: /etc/storkit/host.toml, which only root writes.

    name = "xen2"

    [managers.s]
    url = "ssh://root@10.0.0.1"         volumes = ["web*", "db*"]
    identity = "/etc/storkit/hook_key"  addresses = ["10.0.0.1"]

It is no inventory: of other hosts it says nothing but where disks come from. `storkit hooks install` writes it.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storkit.core import codec
from storkit.core.errors import NotFound, StorkitError, UsageError, collected, raise_problems
from storkit.core.identities import HostName, Line, MaybeAddress, MaybePath, check_name, url_problem
from storkit.system import beneath, files

SYSTEM_FILE = Path("/etc/storkit/host.toml")


@dataclass(frozen=True, slots=True)
class Manager:
    """A host where volumes are."""

    url: Line
    """`ssh://[USER@]HOST[:PORT]`; or `local`: this host itself."""
    identity: MaybePath = ""
    """The file of the key that is bound to this host there; empty: ssh's own choice."""
    addresses: list[MaybeAddress] = field(default_factory=list)
    """Where its servers are; empty: the host of the URL. Nobody is believed who sends this host elsewhere."""
    volumes: list[Line] = field(default_factory=lambda: ["*"])
    """Globs of the volumes' names that are asked for there."""

    @property
    def here(self) -> bool:
        return self.url == "local"

    @property
    def servers(self) -> list[str]:
        return list(self.addresses) or ([] if self.here else [urlsplit(self.url).hostname or ""])

    def has(self, volume: str) -> bool:
        """Whether a volume of this name is asked for there."""
        return any(fnmatchcase(volume, each) for each in self.volumes)


@dataclass(frozen=True, slots=True)
class HostFile:
    """The content of the file."""

    name: HostName
    """What the managers, and inventories, call this host."""
    managers: dict[str, Manager] = field(default_factory=dict)
    state: MaybePath = ""
    """The state directory; empty: the default."""
    transports: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The settings of transports on this host, as the inventory has them."""


def default_file() -> Path:
    """Where the file is. Never by the environment, which may be that of whoever has made a hypervisor call its hook."""
    if os.geteuid() == 0:
        return SYSTEM_FILE
    import pwd

    return Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".config/storkit/host.toml"


def load(file: Path) -> HostFile:
    """The content of the file. Raises NotFound: there is none; Unsafe: others could write it; UsageError: it is
    wrong."""
    try:
        text = beneath.read_trusted(file).decode()
    except FileNotFoundError:
        hint = "storkit hooks install --name THIS-HOST --manager NAME=ssh://USER@HOST"
        raise NotFound(f"this host has no {file}, so its hooks do not know whom to ask", hint) from None
    except OSError as error:
        raise files.explain(error, file) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: {error}", "it is a text in UTF-8") from None
    return parse(text, str(file))


def parse(text: str, where: str) -> HostFile:
    """The content that `text` (TOML) stands for; everything that is wrong at once."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}", "see toml.io for the syntax") from None
    found = codec.load(HostFile, data, where)
    problems: list[StorkitError] = []
    for name, manager in found.managers.items():
        with collected(problems):
            check_name("host", name)
        remote = manager.url.startswith("ssh://")
        problem = url_problem(manager.url) if remote or manager.here else f"{manager.url!r} is none of a manager"
        if problem:
            hint = "write ssh://[USER@]HOST[:PORT], or local for this host itself"
            problems.append(UsageError(f"{where}: managers.{name}.url: {problem}", hint))
    raise_problems(problems)
    return found


def dumps(content: HostFile) -> str:
    """The text of the file."""
    import tomli_w

    def full(record: dict[str, Any]) -> dict[str, Any]:
        return {key: full(value) if isinstance(value, dict) else value for key, value in record.items() if value}

    return (
        "# Who this host is to the managers of its guests' disks, and where they are (storkit hooks install).\n"
        "# Only root may write this file.\n\n" + tomli_w.dumps(full(codec.dump(content)))
    )
