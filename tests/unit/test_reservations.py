"""Reservation keys, and what the kernel's refusals mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storkit.core.errors import Conflict, ServiceUnreachable, Unsupported
from storkit.system.block import reservations

UUID = "2b5e0f0e-7d3c-4c53-9a55-0e8c9c2f7a11"


def test_a_hosts_key_is_the_same_wherever_it_is_computed() -> None:
    # printf 'storkit\0%s\0a' 2b5e0f0e-7d3c-4c53-9a55-0e8c9c2f7a11 | sha256sum | cut -c-16
    assert reservations.key_text(reservations.key_for(UUID, "a")) == "5c25b848bf4f3764"


@given(st.text(min_size=1), st.text(min_size=1))
def test_hosts_have_keys_of_their_own(one: str, other: str) -> None:
    keys = [reservations.key_for(UUID, host) for host in (one, other)]
    assert all(0 < key < 1 << 64 for key in keys)
    assert (keys[0] == keys[1]) == (one == other)


def test_refusals_are_positive_return_values() -> None:
    assert isinstance(reservations.refusal("/dev/sda", "reserve", 0x18), Conflict)
    assert "not registered" in reservations.refusal("/dev/sda", "reserve", 0x18).message
    assert isinstance(reservations.refusal("/dev/sda", "reserve", 0x2), Conflict)
    assert isinstance(reservations.refusal("/dev/sda", "reserve", 0xE0000), ServiceUnreachable)


def test_a_disk_without_reservations(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.touch()
    with pytest.raises(Unsupported, match="persistent reservations"):
        reservations.register(str(file), 1)
