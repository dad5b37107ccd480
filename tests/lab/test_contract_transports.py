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
SLOW = {"nbd-psk", "iscsi-thick", "iscsi-paths", "nvme-chap", "nvme-trusted"}
"""What tests/contract asks on one machine, what differs below the transport, in who proves what or in the number of
paths alone, and what takes modules that are built first (tests/lab/modules.py)."""
SAME_SERVER = {
    test_nothing_is_exported_at_first,  # noqa: F405
    test_an_offer_is_for_the_client_it_was_exported_to,  # noqa: F405
    test_a_damaged_record_of_an_export_hides_no_other,  # noqa: F405
    test_only_hosts_with_an_export_can_be_writers,  # noqa: F405
    test_nobody_writes_images_snapshots_and_unfinished_imports,  # noqa: F405
    test_who_writes_a_volume_past_its_server_is_named_before_a_right_is_given,  # noqa: F405
    test_a_right_that_was_taken_before_a_kill_stays_taken,  # noqa: F405
    test_restore_brings_servers_back_with_the_rights_they_had,  # noqa: F405
    test_a_host_is_detached_though_the_server_is_dead,  # noqa: F405
    test_exporting_and_attaching_again_changes_nothing,  # noqa: F405
    test_it_becomes_larger_under_those_who_have_it,  # noqa: F405
    test_evidence_is_alike_on_two_hosts_and_differs_for_another_disk,  # noqa: F405
}
"""What tests/contract asks of NBD's server on one machine, and test_nbd_kernel.py of its kernel client."""
ELSEWHERE = {
    ("iscsi-thin", test_restore_brings_servers_back_with_the_rights_they_had),  # noqa: F405
    ("iscsi-thin", test_a_right_that_was_taken_before_a_kill_stays_taken),  # noqa: F405
    ("iscsi-thin", test_nobody_writes_images_snapshots_and_unfinished_imports),  # noqa: F405
    ("nfs-4.2", test_restore_brings_servers_back_with_the_rights_they_had),  # noqa: F405
    ("nfs-4.2", test_it_becomes_larger_under_those_who_have_it),  # noqa: F405
}
"""What test_iscsi_target.py asks by its boot, and test_iscsi_target_killed.py; who may write is asked of NFS, whose
server test_nfs.py starts again, and whose host test_nfs_root.py boots; a file that is larger on its server is so on all
hosts."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:  # type: ignore[no-redef]
    if "lab_setup" in metafunc.fixturenames:
        setups = transport_setups("lab_setups")
        metafunc.parametrize(
            "lab_setup",
            [
                pytest.param(setup, id=name, marks=[pytest.mark.slow] if slow(name, metafunc.function) else [])
                for name, setup in setups.items()
            ],
        )


def slow(rig: str, test: object) -> bool:
    # every record of every test here crosses to another host as JSON
    crosses = test is test_every_record_crosses_to_another_host_as_json  # noqa: F405
    return rig in SLOW or crosses or (rig == "nbd-kernel" and test in SAME_SERVER) or (rig, test) in ELSEWHERE


@pytest.fixture(scope="module")
def lab_hosts(pytestconfig: pytest.Config) -> Iterator[Hosts]:
    hosts = Hosts(the_lab(pytestconfig))
    yield hosts
    hosts.discard()


@pytest.fixture
def rig_setup(lab_hosts: Hosts, lab_setup: Callable[[Hosts], AbstractContextManager[Rig]]) -> RigSetup:
    return partial(lab_setup, lab_hosts)
