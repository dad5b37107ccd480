"""What a host accepts of a coordinator: a file of its own, /etc/storkit/accept.toml, that only its root can write.

    state = "/var/lib/storkit"          import = ["/srv/images"]          export = ["/srv/backup"]

    [pools.fast]                        [hypervisors.qemu]
    type = "directory"                  binary = "/usr/bin/qemu-system-x86_64"
    path = "/srv/volumes"

    [guest_hosts.xen2]
    address = "10.0.0.2"                volumes = ["fast/web*"]

A coordinator names a pool, a transport or a hypervisor, and cannot define it: pools are as the file has them, and so
are the settings of transports and hypervisors that hold a path or a program (backend.own_settings). `storkit host
accept` writes it. Where it is, it holds for every key; a key of grade read or storage takes a missing one for empty.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from storkit.core import codec, grades
from storkit.core.backend import Backend, own_settings
from storkit.core.errors import CommandFailed, NotAllowed, StorkitError, Unsafe, UsageError, collected, raise_problems
from storkit.core.host import SYSTEM_STATE, state_directory
from storkit.core.identities import Line, MaybeAddress, MaybeHost, PoolName, Word
from storkit.core.model import Existing, check_name
from storkit.hosts.setup import Setup
from storkit.system import beneath, files

SYSTEM_FILE = Path("/etc/storkit/accept.toml")
MODE = 0o644
KINDS = {"pool": "pools", "transport": "transports", "hypervisor": "hypervisors"}


@dataclass(frozen=True, slots=True)
class GuestHost:
    """A host whose hypervisor's hooks may ask for volumes of this one, by a key that is bound to it."""

    volumes: list[Line]
    """Globs of POOL/NAME: in which it may take part."""
    address: MaybeAddress = ""
    """Where it comes from; empty: it is on this machine."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The content of the file."""

    state: str = ""
    """The state directory; empty: the default."""
    templates: str = ""
    """The administrator's own templates of this host."""
    import_: list[str] = field(default_factory=list)
    """`import` in the file: directories that images are read from."""
    export: list[str] = field(default_factory=list)
    """Directories that images are written to."""
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name to `type` and settings."""
    transports: dict[str, dict[str, Any]] = field(default_factory=dict)
    hypervisors: dict[str, dict[str, Any]] = field(default_factory=dict)
    host: MaybeHost = ""
    """What this host is called by those whose hooks ask it."""
    address: MaybeAddress = ""
    """What they reach its servers at."""
    transport_of: dict[PoolName, Word] = field(default_factory=dict)
    """Pool to the transport that its volumes go by, where the pool's technology has none of its own."""
    guest_hosts: dict[str, GuestHost] = field(default_factory=dict)
    """Name to what its hooks may ask for."""

    def table(self, target: str) -> dict[str, Any] | None:
        """What the file says of `pool:NAME`, `transport:NAME` or `hypervisor:NAME`; None: nothing."""
        kind, _, name = target.partition(":")
        tables: dict[str, dict[str, Any]] = getattr(self, KINDS[kind])
        return tables.get(name)


def default_file() -> Path:
    """Where the file is. Never by the environment, which comes from the other side of the connection (sshd_config(5),
    AcceptEnv)."""
    if os.geteuid() == 0:
        return SYSTEM_FILE
    import pwd

    return Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".config/storkit/accept.toml"


def load(file: Path) -> Accepted | None:
    """The content of the file; None: there is none. Raises Unsafe: others could write it; UsageError: it is wrong."""
    try:
        text = beneath.read_trusted(file).decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise files.explain(error, file) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: {error}", "it is a text in UTF-8") from None
    return parse(text, str(file))


def parse(text: str, where: str) -> Accepted:
    """The content that `text` (TOML) stands for; everything that is wrong at once."""
    import tomllib  # most hosts have no such file

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}", "see toml.io for the syntax") from None
    if "import" in data:
        data["import_"] = data.pop("import")
    accepted = codec.load(Accepted, data, where)
    problems: list[StorkitError] = [
        UsageError(f"{where}: {each!r} is not an absolute path", "name it from / on")
        for each in (accepted.state, accepted.templates, *accepted.import_, *accepted.export)
        if each and not Path(each).is_absolute()
    ]
    for name, guest_host in accepted.guest_hosts.items():
        with collected(problems):
            check_name("host", name)
        problems += [
            UsageError(f"{where}: guest_hosts.{name}.volumes: {each!r} is no POOL/NAME", "POOL/* is all of a pool")
            for each in guest_host.volumes
            if each.count("/") != 1
        ]
    raise_problems(problems)
    return accepted


def dumps(accepted: Accepted) -> str:
    """The text of the file."""
    import tomli_w

    data = {key.rstrip("_"): value for key, value in codec.dump(accepted).items() if value}
    return (
        "# What this host accepts of coordinators (storkit host accept): pools, programs and directories that they\n"
        "# name, and cannot define. Only root may write this file.\n\n" + tomli_w.dumps(data)
    )


def save(file: Path, accepted: Accepted) -> None:
    """Write the file, whole or not at all. Raises Unsafe: others could write it there."""
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.close(beneath.open_trusted(file.parent))
        if file.is_symlink():
            raise Unsafe(f"{file} is a symbolic link", "put the file itself there")
        files.write_atomic(file, dumps(accepted), MODE)
    except OSError as error:
        raise files.explain(error, file) from error


class Limits:
    """What one key may have done on this host: its grade, and what the host accepts (None: everything)."""

    def __init__(self, grade: str = "", accepted: Accepted | None = None, host: str = "") -> None:
        self.grade = grade
        self.accepted = accepted
        self.host = host

    def check(self, request: dict[str, Any]) -> None:
        """Raise NotAllowed for a request of an agent's that is above the key's grade."""
        grades.check(self.grade, request)

    def setup(self, told: Setup) -> Setup:
        """What a coordinator told, with the host's own directories. Raises NotAllowed if it wanted others."""
        self.host = told.host
        check_names(told)
        if self.accepted is None:
            return told
        state = self.accepted.state or str(SYSTEM_STATE if os.geteuid() == 0 else state_directory())
        problems: list[StorkitError] = []
        if told.state and os.path.realpath(told.state) != os.path.realpath(state):
            message = f"host {self.host} keeps its state in {state}, and does not accept {told.state!r}"
            hint = f"give it no other `state` in the inventory; or there, as root: {_accept('--state DIRECTORY')}"
            problems.append(NotAllowed(message, hint))
        if told.templates and told.templates != self.accepted.templates:
            message = f"host {self.host} does not accept the templates {told.templates!r}"
            problems.append(NotAllowed(message, f"there, as root: {_accept('--templates DIRECTORY')}"))
        raise_problems(problems)
        return replace(told, state=state, templates=self.accepted.templates)

    def settings(self, cls: type[Backend], target: str, told: dict[str, Any]) -> dict[str, Any]:
        """The settings that a backend gets of those that a coordinator told. Raises NotAllowed: they are not what the
        host's file has."""
        if self.accepted is None:
            return told
        own = self.accepted.table(target)
        if refusal := difference(cls, target, told, own):
            raise NotAllowed(
                f"host {self.host} does not accept {target}{refusal}", f"there, as root: {_accept(target)}"
            )
        if target.startswith("pool:"):
            return {key: value for key, value in (own or {}).items() if key != "type"}
        return {**told, **(own or {})}

    @contextmanager
    def paths(self, kind: str, verb: str, values: dict[str, Any]) -> Iterator[Callable[[Any], Any]]:
        """While a verb is carried out: its argument that names a file leads below the accepted directories and nowhere
        else; a hypervisor's own place has no name. What is yielded puts the file's name back into what the verb
        answers."""
        if self.accepted is not None and (kind, verb) in grades.ADOPTING:
            self._refuse_elsewhere(values["found"])
        argument, use = grades.PATHS.get((kind, verb), ("", ""))
        path = values.get(argument)
        if self.accepted is None or path is None or (kind == "hypervisor" and not path):
            yield lambda answer: answer
            return
        opened: AbstractContextManager[str] = (
            beneath.reading(path, self.accepted.import_)
            if use == "import"
            else beneath.making(path, self.accepted.export)
        )
        with opened as there:
            values[argument] = there
            try:
                yield lambda answer: _renamed(answer, there, path)
            except StorkitError as error:
                for problem in error.each:
                    problem.message = problem.message.replace(there, path)
                    problem.hint = problem.hint.replace(there, path)
                    problem.args = (problem.message,)
                    if isinstance(problem, CommandFailed):
                        problem.argv = _renamed(problem.argv, there, path)
                        problem.stderr = problem.stderr.replace(there, path)
                raise

    def _refuse_elsewhere(self, found: list[Existing]) -> None:
        """Raise NotAllowed for files that lie neither in a pool nor where images may be read. Who could put another in
        their place is looked at by who takes them (tech/files/adopting.py)."""
        assert self.accepted is not None
        own = [str(table.get("path", "")) for table in self.accepted.pools.values()]
        state = self.accepted.state or str(SYSTEM_STATE if os.geteuid() == 0 else state_directory())
        allowed = [os.path.realpath(each) for each in (*own, f"{state}/volumes", *self.accepted.import_) if each]
        places = [each.place for each in found if each.place.startswith("/")]
        raise_problems(
            [
                NotAllowed(
                    f"host {self.host} does not let {place} be adopted: it is in no pool of its own",
                    f"there, as root: {_accept(f'--import-dir {Path(place).parent}')}",
                )
                for place in places
                if not Path(place).is_block_device()
                and not any(Path(os.path.realpath(Path(place).parent)).is_relative_to(each) for each in allowed)
            ]
        )


def check_names(told: Setup) -> None:
    """Raise UsageError for names that are none: they come to stand in messages, and in commands to type."""
    problems: list[StorkitError] = []
    for what, names in (("pool", told.pools), ("transport", told.transports), ("hypervisor", told.hypervisors)):
        for name in names:
            with collected(problems):
                check_name(what, name)
    raise_problems(problems)


def limits(grade: str = "", file: Path | None = None) -> Limits:
    """The limits of a key: `file` instead of the default one must be there."""
    accepted = load(file or default_file())
    if accepted is None:
        if file is not None:
            raise UsageError(f"there is no file {file}", "storkit host accept writes it")
        if grade in (grades.READ, grades.STORAGE):
            accepted = Accepted()
    return Limits(grade, accepted)


def difference(cls: type[Backend], target: str, told: dict[str, Any], own: dict[str, Any] | None) -> str:
    """In what a coordinator's definition goes beyond the host's own, as the end of a sentence; empty: in nothing."""
    pool = target.startswith("pool:")
    if pool and own is None:
        return ": its file does not have it"
    own = own or {}
    if pool and own.get("type", "directory") != cls.name:
        return f" of type {cls.name}: there it is of type {own.get('type', 'directory')}"
    defaults = {
        each.name: each.default_factory() if each.default_factory is not MISSING else each.default
        for each in fields(cls.Settings)
    }
    fixed = set(told) if pool else (own_settings(cls.Settings).keys() | own.keys()) & told.keys()
    wrong = [key for key in sorted(fixed) if told[key] != own.get(key, defaults.get(key))]
    return "".join(
        f"{',' if number else ' with'} {key} = {told[key]!r} (there: {own.get(key, defaults.get(key))!r})"
        for number, key in enumerate(wrong)
    )


def _accept(words: str) -> str:
    return f"storkit host accept {words}"


def _renamed(value: Any, there: str, path: str) -> Any:
    if isinstance(value, str):
        return value.replace(there, path)
    if isinstance(value, list):
        return [_renamed(each, there, path) for each in value]
    if isinstance(value, dict):
        return {key: _renamed(each, there, path) for key, each in value.items()}
    return value
