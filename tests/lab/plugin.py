"""The `lab` fixture, and what is shown when a test that uses it fails.

The conftest.py of each folder with such tests imports both names: `lab` and `pytest_runtest_makereport`.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.lab.errors import LabError, Unsupported
from tests.lab.host import Host
from tests.lab.lab import Lab

# One lab for the whole run, whichever folder asks first.
_LAB = pytest.StashKey[Lab]()
_TAIL = 40


@pytest.fixture
def lab(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """Hosts with real kernels. Those that a test dirties are thrown away after it; the others stay up for the next."""
    opened = the_lab(pytestconfig)
    yield opened
    opened.tidy()


def the_lab(config: pytest.Config) -> Lab:
    """The run's lab, for fixtures that keep hosts in use from test to test and tidy up themselves."""
    if _LAB not in config.stash:
        try:
            opened = Lab(lambda text: _say(config, text), nvme=_wants_nvme(config))
        except Unsupported as reason:
            pytest.skip(str(reason))
        config.stash[_LAB] = opened
        config.add_cleanup(opened.close)
    return config.stash[_LAB]


def _wants_nvme(config: pytest.Config) -> bool:
    """Whether a test of this run is of NVMe/TCP, whose modules take minutes to build."""
    session = config.pluginmanager.get_plugin("session")
    return session is None or any("nvme" in item.nodeid for item in session.items)


def _say(config: pytest.Config, text: str) -> None:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter:
        reporter.write_line(f"lab: {text}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    opened = item.config.stash.get(_LAB, None)
    if (
        opened
        and report.failed
        and report.when != "teardown"
        and {"lab", "lab_hosts"} & {*getattr(item, "fixturenames", ())}
    ):
        for host in opened.known():
            if host.is_on() or host.log:
                report.sections.append((f"host {host.name}", describe(host)))
    return report


def describe(host: Host) -> str:
    """What a person needs: the last commands, the kernel's messages, the end of the console."""
    lines = []
    for done in host.log[-6:]:
        lines += [f"$ {shlex.join(done.argv)[:2000]}   -> {done.status} in {done.seconds:.1f} s"]
        lines += [line for text in (done.stdout, done.stderr) for line in text.splitlines()[-_TAIL:]]
    try:
        host.resume()
        messages = host.run(["dmesg"], timeout=10).stdout.splitlines()
        lines += ["--- dmesg", *messages[-_TAIL:]]
    except (LabError, TimeoutError) as error:
        lines += [f"--- no dmesg: {error}"]
    lines += ["--- console", *host.console().splitlines()[-_TAIL // 2 :]]
    return "\n".join(lines)
