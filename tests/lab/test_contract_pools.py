"""The contract tests of pools whose technology needs a real kernel, run by pytest inside a host."""

from __future__ import annotations

import pytest

from tests.lab import Lab
from tests.lab.inner import run_tests

pytestmark = pytest.mark.lab


PLAIN = (
    "bad_names", "new_pool", "creating_again", "a_taken_name", "all_problems", "half_import", "never_resized",
    "being_moved", "flat_image", "relabel", "sealed_image", "a_damaged_volume_is_refused", "hold_ends",
    "that_is_another_is_not_held", "image_with_dependents", "held_volume", "only_while_nobody_writes",
    "who_make_one_name",
)  # fmt: skip
OWN = f"(test_pools.py and not ({' or '.join(PLAIN)})) or given or all_of_a_call"
"""What LVM does in its own way. The others, which take no command of LVM's but those that make a volume, are of code
that all pools share; so are the files of kept guests, but for which volume group's they are, and that they go with
it."""


def test_lvm_pools_keep_what_is_lvms_of_the_contract(lab: Lab) -> None:
    keep(lab, f"lvm-thin and ({OWN})")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["thin", "thick"])
def test_lvm_pools_keep_the_contract(lab: Lab, variant: str) -> None:
    keep(lab, f"lvm-{variant} and test_pools.py")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["thin", "thick"])
def test_lvm_pools_keep_guests(lab: Lab, variant: str) -> None:
    keep(lab, f"lvm-{variant} and test_kept_guests.py")


def keep(lab: Lab, which: str) -> None:
    (host,) = lab.hosts("s")
    disk = host.add_disk(2 << 30)
    files = ("tests/contract/test_pools.py", "tests/contract/test_kept_guests.py")
    said = run_tests(host, *files, "-k", which, timeout=1800, env={"LAB_LVM_DISK": disk})
    print(said)
    assert "skipped" not in said


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["thin", "thick"])
def test_lvm_pools_adopt_what_is_there(lab: Lab, variant: str) -> None:
    (host,) = lab.hosts("s")
    words = ("tests/contract/test_pools_adopted.py", "-k", f"lvm-{variant}")
    said = run_tests(host, *words, timeout=600, env={"LAB_LVM_DISK": host.add_disk(2 << 30)})
    print(said)
    assert "skipped" not in said
