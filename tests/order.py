"""The order of the tests: the lab's first, the longest of them first, so that no worker waits for another at the end.

pytest-xdist's `worksteal` gives each worker a piece of the list, and whoever has no more takes from another's end. So
one worker begins with the lab, the others run the quick tests beside it, and come to the lab's shorter ones later.
"""

from __future__ import annotations

import pytest

LONGEST = (
    "test_contract_transports", "test_faults", "test_migrate_and_back", "test_nbd_kernel", "test_nfs",
    "test_contract_pools", "test_iscsi_attach", "test_iscsi_target", "test_iscsi_attach_faults", "test_rights",
    "test_nfs_limits", "test_lvm", "test_lvm_killed",
)  # fmt: skip
"""Files of the lab."""
BESIDE = ("e2e", "contract", "unit")


def arrange(items: list[pytest.Item]) -> None:
    """Sort in place; tests that are alike keep their order."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> tuple[int | str, ...]:
    if item.get_closest_marker("lab") is None:
        folder = item.path.parent.name
        return (1, BESIDE.index(folder) if folder in BESIDE else len(BESIDE), item.path.stem != "test_kill_points")
    file = item.path.stem
    rank = LONGEST.index(file) if file in LONGEST else len(LONGEST)
    callspec = getattr(item, "callspec", None)
    rig = callspec.id.partition("-{")[0] if callspec and "lab_setup" in callspec.params else ""
    return (0, rank, file, rig, item.get_closest_marker("power") is not None)
