"""What each test costs: its CPU and wall seconds, with everything that it started, shown at the end of a run.

tests/conftest.py imports the hooks. A control group counts exactly, where one can be made (as root, on cgroup v2);
elsewhere processes that leave their parent, as daemons do, are not counted after that.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

SHOWN = 25
_TICKS = os.sysconf("SC_CLK_TCK")
_STARTED = pytest.StashKey[tuple[float, float]]()
_COUNTER = pytest.StashKey["_Group | _Family"]()
_COSTS = pytest.StashKey[dict[str, tuple[float, float]]]()
_WORKERS = pytest.StashKey[list[float]]()


class _Group:
    """A control group that this process and all of its descendants are in."""

    def __init__(self) -> None:
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        self._parent = Path(next(words[1] for words in mounts if words[2] == "cgroup2")) / own.lstrip("/")
        self._own = self._parent / f"storkit-tests-{os.getpid()}"
        self._own.mkdir()
        try:
            (self._own / "cgroup.procs").write_text(str(os.getpid()))
            self.seconds()
        except BaseException:
            self.close()
            raise

    def seconds(self) -> float:
        words = (self._own / "cpu.stat").read_text().split()
        return int(words[words.index("usage_usec") + 1]) / 1e6

    def close(self) -> None:
        with contextlib.suppress(OSError):
            (self._parent / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.suppress(OSError):  # not as long as a daemon that a test left is in it
            self._own.rmdir()


class _Family:
    """This process, its descendants, and those of them that were waited for."""

    def seconds(self) -> float:
        return sum(map(_used, _descendants(os.getpid()))) / _TICKS

    def close(self) -> None:
        pass


def _descendants(pid: int) -> Generator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _descendants(int(child))


def _used(pid: int) -> int:
    """Ticks of a process and of those it has waited for (proc(5), /proc/pid/stat, fields 14 to 17)."""
    try:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    except OSError:
        return 0


def _counter(config: pytest.Config) -> _Group | _Family:
    if _COUNTER not in config.stash:
        try:
            config.stash[_COUNTER] = _Group()
        except (OSError, StopIteration, ValueError):
            config.stash[_COUNTER] = _Family()
    return config.stash[_COUNTER]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    item.stash[_STARTED] = _counter(item.config).seconds(), time.monotonic()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if call.when == "teardown":
        cpu, wall = item.stash[_STARTED]
        spent = _counter(item.config).seconds() - cpu, time.monotonic() - wall
        report.user_properties.append(("cost", spent))
    return report


class Costs:
    """The part that shows them, in the process that reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._tests: dict[str, tuple[float, float]] = {}
        self._workers: list[float] = []
        self._started = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found: list[tuple[str, Any]] = report.user_properties if report.when == "teardown" else []
        for name, value in found:
            if name == "cost":
                self._tests[report.nodeid] = tuple(value)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._workers.append(getattr(node, "workeroutput", {}).get("cpu", 0.0))

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if not self._tests or config.getoption("verbose") < -1:
            return
        files: dict[str, list[float]] = defaultdict(list)
        for name, (cpu, _) in self._tests.items():
            files[name.partition("::")[0]].append(cpu)
        write = terminalreporter.write_line
        terminalreporter.section("what the tests cost")
        write("CPU s  wall s")
        for name, (cpu, wall) in sorted(self._tests.items(), key=lambda test: -test[1][0])[:SHOWN]:
            if cpu >= 1:
                write(f"{cpu:5.1f}  {wall:6.1f}  {name}")
        for name, spent in sorted(files.items(), key=lambda file: -sum(file[1])):
            if len(files) > 1 and sum(spent) >= 1:
                write(f"{sum(spent):5.0f}          {name} ({len(spent)} tests)")
        tests = sum(cpu for cpu, _ in self._tests.values())
        own = _counter(config).seconds()
        write(
            f"CPU {max(own, own + sum(self._workers), tests):.0f} s in all, {tests:.0f} s of it in {len(self._tests)} "
            f"tests; {time.monotonic() - self._started:.0f} s by the clock"
        )


def configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Costs(config), "storkit-costs")


def finish(config: pytest.Config) -> None:
    """At a process's end: a worker tells what it took, and leaves its control group."""
    if hasattr(config, "workeroutput"):
        config.workeroutput["cpu"] = _counter(config).seconds()


def unconfigure(config: pytest.Config) -> None:
    if _COUNTER in config.stash:
        config.stash[_COUNTER].close()
