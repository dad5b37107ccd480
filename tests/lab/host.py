"""A host of the lab, as a test sees it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tests import xstate
from tests.lab import network
from tests.lab.cell import Cell
from tests.lab.channel import LONGEST, Channel, socketpair
from tests.lab.errors import CommandFailed, LabError
from tests.lab.modules import DEBIAN
from tests.lab.uml import DISKS, Settings, Uml

BOOT_DEADLINE = 180.0
PATIENCE = "2"
"""STORKIT_TIMEOUT_FACTOR in hosts: some of their tests wait until storkit has given something up."""
OWN = ("/var/lib/storkit", "/run/storkit", "/dev/storkit", "/etc/storkit", "/srv/volumes", "/srv/guest")
KEPT = re.compile(rf"\+ files: (?P<path>({'|'.join(OWN)}|/root|/tmp)/\S+) ")
"""Files that may be removed of a host on which nothing else has changed: nobody has one open."""
STAYS = re.compile(
    r"\+ modules: |. processes: (sshd: |/usr/sbin/sshd -R)|. files: (/run/utmp |/var/log/|/dev/mapper/control )"
)
"""What makes no difference to the next test: loaded modules, ssh's sessions and its logs."""

_COMMAND = """\
import sys
sys.path.append("/storkit/tests/lab/guest")
import commands
sys.exit(commands.main(sys.argv[2:], sys.argv[1]))
"""
_LEAVE = "import sys; 'commands' in sys.modules and sys.modules['commands'].leave()"


@dataclass(frozen=True)
class Result:
    argv: list[str]
    status: int
    stdout: str
    stderr: str
    seconds: float


class Command:
    """A command that runs in a host while the test goes on."""

    def __init__(self, host: Host, channel: Channel, id: int, answer: Future[dict[str, Any]], argv: list[str]) -> None:
        self._host, self._channel, self._id, self._answer = host, channel, id, answer
        self.argv = argv
        self._started = time.monotonic()
        self._result: Result | None = None

    def running(self) -> bool:
        return not self._answer.done()

    def kill(self, signal: int = 15) -> None:
        self._channel.request("kill", command=self._id, signal=signal)[1].result(timeout=30)

    def wait(self, timeout: float = 60, check: bool = True) -> Result:
        """Its result; raises CommandFailed for a status other than 0 unless `check` is false."""
        if self._result is None:
            try:
                answer = self._answer.result(timeout)
            except TimeoutError:
                raise LabError(f"on {self._host.name}: {shlex.join(self.argv)}\nstill runs after {timeout} s") from None
            seconds = time.monotonic() - self._started
            stdout, stderr = self._text(answer["stdout"]), self._text(answer["stderr"])
            self._result = Result(self.argv, answer["status"], stdout, stderr, seconds)
            self._host.log.append(self._result)
            if answer["timed_out"]:
                raise CommandFailed(self._host.name, self.argv, answer["status"], stdout, stderr + "\n(timed out)")
        result = self._result
        if check and result.status:
            raise CommandFailed(self._host.name, result.argv, result.status, result.stdout, result.stderr)
        return result

    def _text(self, output: Any) -> str:
        if not isinstance(output, dict):
            return str(output)
        file = self._host.own / output["file"]
        data: bytes = file.read_bytes()
        file.unlink()
        return data.decode(errors="surrogateescape")


def changes(before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> list[str]:
    """What differs between two states of a host, as lines like "+ processes: iscsid"."""
    lines = []
    for kind, entries in before.items():
        lines += [f"+ {kind}: {entry}" for entry in sorted(set(now[kind]) - set(entries))]
        lines += [f"- {kind}: {entry}" for entry in sorted(set(entries) - set(now[kind]))]
    return lines


class Machine(Protocol):
    """What a host runs on: a process of the cell."""

    def is_on(self) -> bool: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...

    def plug(self, letter: str, file: Path) -> None:
        """Add a disk while it runs."""


class Host:
    """One machine. It has a root disk that is a copy-on-write layer over the image, and a port on every network."""

    longest_request = LONGEST
    disk_prefix = "/dev/ubd"
    python_environment: Mapping[str, str] = {
        "PYTHONPATH": "/storkit:/opt/storkit/site-packages",
        "PYTHONPYCACHEPREFIX": "/lab/common/pyc",
    }

    def __init__(self, cell: Cell, name: str, index: int, image: Path, modules: Path = DEBIAN) -> None:
        self.name, self.index, self.memory = name, index, ""
        self.changes = 0
        """How often its power or a network of its went off, or it stood still."""
        self.log: list[Result] = []
        self._cell, self._image, self._modules = cell, image, modules
        self._directory = cell.run_dir / "hosts" / name
        self.own = cell.path(self._directory / "own")
        self.own.mkdir(parents=True)
        self._disks: list[str] = []
        self._machine: Machine | None = None
        self._channel: Channel | None = None
        self._clean: dict[str, list[str]] | None = None
        self._cuts: set[str] = set()
        self._paused = False
        self._interpreters: dict[str, Mapping[str, str]] = {}
        """What the kept interpreters were told of their environments, by itself."""
        network.make_taps(cell, name)

    def address(self, on: str = "lan") -> str:
        return network.address(on, self.index)

    # --- power

    def boot(self) -> None:
        """Power on, with the disks as they are, and wait until the host answers. Does nothing to a host that is on."""
        self.start()
        self.wait_until_up()

    def start(self) -> None:
        """Power on without waiting."""
        if self._machine and self._machine.is_on():
            return
        ours, theirs = socketpair()
        self._machine = self._power_on(theirs)
        self._channel = Channel(self.name, ours)

    def _power_on(self, line: int) -> Machine:
        """Start the machine, with this end of its serial line."""
        addresses = " ".join(f"{net}={self.address(net)}/24" for net in network.NETWORKS)
        settings = Settings(
            name=self.name,
            memory=self.memory,
            disks=[f"{self._directory / 'root.cow'},{self._image}", *self._disks],
            taps=[(network.tap(net, self.name), network.mac(net, self.index)) for net in network.NETWORKS],
            environment={
                "LAB_NAME": self.name,
                "LAB_PATIENCE": PATIENCE,
                "LAB_RUN": str(self._cell.run_dir),
                "LAB_MODULES": str(self._modules),
                "LAB_TREE": str(self._cell.run_dir / "tree"),
                "LAB_NETWORKS": f'"{addresses}"',
                "LAB_MACHINE_ID": f"{self.index:032x}",
            },
        )
        if xstate.needed():
            settings = replace(settings, before=["env", f"LD_PRELOAD={self._cell.run_dir / 'common' / xstate.LIBRARY}"])
        return Uml(self._cell, self._directory, settings, line)

    def wait_until_up(self, deadline: float = BOOT_DEADLINE) -> None:
        try:
            self._on().hello.result(deadline)
        except (TimeoutError, LabError) as error:
            how = f"did not answer within {deadline} s" if isinstance(error, TimeoutError) else "went off while booting"
            raise LabError(f"host {self.name} {how}; its console:\n{self.console()[-3000:]}") from None

    def power_off(self) -> None:
        """Pull the plug: what was not written to a disk is lost."""
        self._paused = False
        self.changes += 1
        self._interpreters.clear()
        if self._machine:
            self._machine.kill()
        if self._channel:
            self._channel.close()
        self._machine = self._channel = None

    def pause(self) -> None:
        """Stop every processor of the host, as a hung machine's."""
        self.changes += 1
        if self._machine:
            self._machine.pause()
            self._paused = True

    def resume(self) -> None:
        if self._machine and self._paused:
            self._machine.resume()
            self._paused = False

    def reset(self) -> None:
        """Power off and boot from a fresh root disk, without extra disks, every network healed."""
        self.discard()
        self.boot()

    def discard(self) -> None:
        """Power off and throw every disk away; the next boot is of a fresh host."""
        self.power_off()
        self.heal()
        self._clean = None
        for disk in [self._directory / "root.cow", *map(Path, self._disks)]:
            self._cell.path(disk).unlink(missing_ok=True)
        self._disks.clear()
        shutil.rmtree(self.own)
        self.own.mkdir()
        self.console_file.unlink(missing_ok=True)

    # --- commands

    def run(self, argv: Sequence[str | Path], *, check: bool = True, timeout: float = 120, input: str | None = None,
            env: Mapping[str, str] | None = None, cwd: str | None = None) -> Result:  # fmt: skip
        """Run a command as root and wait. Raises CommandFailed for a status other than 0 unless `check` is false, and
        whenever it takes more than `timeout` seconds (it is then killed)."""
        # the agent enforces the timeout; the rest is for a host that hangs
        return self.spawn(argv, timeout=timeout, input=input, env=env, cwd=cwd).wait(timeout + 30, check)

    def spawn(self, argv: Sequence[str | Path], *, timeout: float = 3600, input: str | None = None,
              env: Mapping[str, str] | None = None, cwd: str | None = None) -> Command:  # fmt: skip
        """Start a command and go on."""
        words = [str(word) for word in argv]
        return self._ask(words, "run", argv=words, timeout=timeout, input=input, env=dict(env or {}), cwd=cwd)

    def _ask(self, words: list[str], do: str, **fields: Any) -> Command:
        """Ask the host's agent for something; `words` are what a person would call it."""
        channel = self._on()
        if len(json.dumps(fields)) <= self.longest_request:
            return Command(self, channel, *channel.request(do, **fields), words)
        # the serial line takes short requests only: a long one is left in a file that the host sees
        file = self.own / f"request-{time.monotonic_ns()}"
        file.write_text(json.dumps({"do": do, **fields}))
        return Command(self, channel, *channel.request("file", file=file.name), words)

    def python(self, code: str, *args: str, timeout: float = 60, fresh: bool = False) -> str:
        """Run Python code in the host, with storkit's tree and dependencies importable; returns what it prints.

        It runs in an interpreter that has run other code before (guest/interpreter.py), unless it is to be a `fresh`
        one: for code that changes modules, or ends its own process.
        """
        if fresh:
            argv = ["/usr/bin/python3", "-", *args]
            return self.run(argv, input=code, timeout=timeout, env=self.python_environment).stdout
        return self._python(["python3", "-", *args], code, args, timeout, {}).wait(timeout + 30).stdout

    def storkit(self, words: Sequence[str], since: str = "", timeout: float = 120, env: Mapping[str, str] | None = None,
                ) -> Result:  # fmt: skip
        """Run a storkit command in the kept interpreter, whatever its end; its agents on other hosts stay for the next
        one with the same `since` (guest/commands.py)."""
        command = self._python(["storkit", *words], _COMMAND, [since, *words], timeout, env or {})
        return command.wait(timeout + 30, check=False)

    def rest(self) -> None:
        """End the kept interpreters, and the agents on other hosts that wait for their next command."""
        if self.is_on() and not self._paused:
            for env in list(self._interpreters.values()):
                self._python(["python3"], _LEAVE, (), 60, env).wait(90)
            if self._interpreters:
                self._on().request("rest")[1].result(60)
        self._interpreters.clear()

    def _python(
        self, words: list[str], code: str, args: Sequence[str], timeout: float, env: Mapping[str, str]
    ) -> Command:
        """Code in the kept interpreter of this environment."""
        environment = {**self.python_environment, **env}
        self._interpreters[json.dumps(environment)] = env
        return self._ask(words, "python", code=code, argv=list(args), timeout=timeout, env=environment)

    def put(self, content: str | bytes | Path, path: str, mode: int = 0o644) -> None:
        """Write a file in the host: from text, bytes, or a file of the test's."""
        data = content.read_bytes() if isinstance(content, Path) else content
        passing = self.own / f"put-{time.monotonic_ns()}"
        passing.write_bytes(data if isinstance(data, bytes) else data.encode())
        self.run(["install", "-D", "-m", f"{mode:o}", f"/lab/own/{passing.name}", path])
        passing.unlink()

    def get(self, path: str) -> bytes:
        """The content of a file in the host."""
        passing = self.own / f"get-{time.monotonic_ns()}"
        self.run(["cp", path, f"/lab/own/{passing.name}"])
        data = passing.read_bytes()
        passing.unlink()
        return data

    def wait_for(self, condition: Callable[[], object], what: str, deadline: float = 30, every: float = 0.25) -> None:
        """Wait until `condition()`, asked `every` so many seconds, is true; `what` is for the error. `deadline` is that
        of an idle machine. A question that runs a command takes a host some 50 ms of its processor."""
        deadline *= float(PATIENCE)
        end = time.monotonic() + deadline
        while not condition():
            if time.monotonic() > end:
                raise LabError(f"on {self.name}: no {what} within {deadline} s")
            time.sleep(every)

    # --- hardware

    def add_disk(self, size: int, content: Path | None = None) -> str:
        """Plug in a disk of `size` bytes, blank or with the content of a file; returns its device. It stays until the
        host is reset."""
        letter = DISKS[len(self._disks) + 1]
        file = self._directory / f"disk-{letter}"
        if content:
            shutil.copyfile(content, self._cell.path(file))
        with self._cell.path(file).open("ab") as disk:
            disk.truncate(size)
        if self._machine:
            self._machine.plug(letter, file)
        self._disks.append(str(file))
        device = f"{self.disk_prefix}{letter}"
        if self._machine:
            self.run(["udevadm", "settle"])
            self.run(["test", "-b", device])
        return device

    def cut(self, *networks: str) -> None:
        """Lose every frame to and from this host on these networks (all, when none is named)."""
        self._set_ports(networks, False)

    def heal(self, *networks: str) -> None:
        self._set_ports(networks, True)

    def _set_ports(self, networks: Iterable[str], connected: bool) -> None:
        chosen = tuple(networks) or network.NETWORKS
        changed = [net for net in chosen if (net in self._cuts) == connected]
        self.changes += bool(changed)
        network.set_port(self._cell, self.name, changed, connected)
        self._cuts = self._cuts - set(changed) if connected else self._cuts | set(changed)

    # --- what a person needs after a failure

    @property
    def console_file(self) -> Path:
        return self._cell.path(self._directory / "console")

    def console(self) -> str:
        """What the kernel has printed since the host was made."""
        return self.console_file.read_text(errors="replace") if self.console_file.exists() else ""

    def is_on(self) -> bool:
        return bool(self._machine and self._machine.is_on())

    # --- reuse

    def state(self) -> dict[str, list[str]]:
        """What makes this host differ from a fresh one: processes, mounts, disks, modules, files ..."""
        return dict(self._on().request("state")[1].result(60)["state"])

    def remember_clean(self) -> None:
        self._clean = self.state()

    def dirt(self) -> list[str]:
        """What a test has left behind, as lines like "+ processes: iscsid"; empty means that the host can be reused."""
        if self._clean is None or not self.is_on():
            return ["the host is off or was never clean"]
        if self._cuts or self._paused:
            return ["a network is cut or the host is paused"]
        try:
            now = self.state()
        except (LabError, TimeoutError) as error:
            return [f"the host does not answer: {error}"]
        return changes(self._clean, now)

    def scrub(self) -> bool:
        """Remove files of storkit and of tests, if there is nothing else; whether the host is clean then."""
        lines = [line for line in self.dirt() if not STAYS.match(line)]
        paths = [found["path"] for line in lines if (found := KEPT.match(line))]
        if len(paths) < len(lines):
            return False
        if paths:
            self.run(["rm", "-rf", "--one-file-system", *OWN, *paths])
            lines = [line for line in self.dirt() if not STAYS.match(line)]
        return not lines

    def _on(self) -> Channel:
        if self._channel is None:
            raise LabError(f"host {self.name} is off")
        return self._channel
