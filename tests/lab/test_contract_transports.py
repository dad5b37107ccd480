"""The transport contract (tests/contract/test_transports.py), the same tests, on hosts with kernels of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import pytest

from tests.contract.rig import Rig, RigSetup
from tests.contract.test_transports import *  # noqa: F403
from tests.contract.test_transports import transport_setups
from tests.lab.plugin import the_lab
from tests.lab.remote import Hosts

pytestmark = pytest.mark.lab
SLOW = {"nbd-psk", "iscsi-thick"}
"""What tests/contract asks on one machine, and what differs below the transport alone."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:  # type: ignore[no-redef]
    if "lab_setup" in metafunc.fixturenames:
        setups = transport_setups("lab_setups")
        metafunc.parametrize(
            "lab_setup",
            [
                pytest.param(setup, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
                for name, setup in setups.items()
            ],
        )


@pytest.fixture(scope="module")
def lab_hosts(pytestconfig: pytest.Config) -> Iterator[Hosts]:
    hosts = Hosts(the_lab(pytestconfig))
    yield hosts
    hosts.discard()


@pytest.fixture
def rig_setup(lab_hosts: Hosts, lab_setup: Callable[[Hosts], AbstractContextManager[Rig]]) -> RigSetup:
    return partial(lab_setup, lab_hosts)
