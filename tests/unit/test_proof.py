"""What proves that two hosts see one disk, and what disproves it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from storkit.core.errors import Unsafe
from storkit.core.model import Evidence
from storkit.plans.proof import Comparison, same_disk


def evidence(
    host: str,
    key: str = "",
    keys: list[str] | None = None,
    identity: str = "naa.6001405",
    blocks: dict[str, str] | None = None,
) -> Evidence:
    return Evidence("v", host, identity, 1 << 20, blocks or {}, key, keys)


def test_evidence_must_agree_and_show_the_keys_of_the_others() -> None:
    same_disk("v", [evidence("a", "1f", ["1f"]), evidence("b", "", ["1f"])])
    same_disk("v", [evidence("a", "1f", ["1f"]), evidence("b")])
    with pytest.raises(Unsafe, match="a has registered key 1f, which b does not see"):
        same_disk("v", [evidence("a", "1f", ["1f"]), evidence("b", "", [])])
    with pytest.raises(Unsafe, match="two different disks"):
        same_disk("v", [evidence("a"), evidence("b", identity="naa.6001406")])


def compared(*rounds: Sequence[dict[str, str]]) -> Comparison:
    """Rounds of what hosts a and b read."""
    comparison = Comparison()
    for a, b in rounds:
        comparison.add([evidence("a", blocks=a), evidence("b", blocks=b)])
    return comparison


def test_blocks_that_are_alike_prove_and_others_are_read_again() -> None:
    comparison = Comparison()
    a, b = {"0": "x", "4096": "y"}, {"0": "x", "4096": "z"}
    assert comparison.add([evidence("a", blocks=a), evidence("b", blocks=b)]) == [4096]
    assert comparison.add([evidence("a", blocks={"4096": "z"}), evidence("b", blocks={"4096": "z"})]) == []
    assert comparison.conclude("v", ["a", "b"]) == 2


def test_a_block_that_is_written_all_the_time_proves_nothing_and_disproves_nothing() -> None:
    rounds = [({"0": "x", "8192": f"{turn}"}, {"0": "x", "8192": f"{turn}+"}) for turn in range(5)]
    assert compared(*rounds).conclude("v", ["a", "b"]) == 1


@pytest.mark.parametrize(
    "rounds",
    [
        [({"0": "x", "512": "y"}, {"0": "x", "512": "z"})] * 5,  # one place differs, and nobody writes it
        [({"0": "x", "512": "y"}, {"0": "x", "512": "z"})],  # asked once
        [({"0": "x", "512": "y"}, {"0": "x"})] * 2,  # one host cannot read there
        [({"0": f"{turn}"}, {"0": f"{turn}+"}) for turn in range(5)],  # nothing was ever alike
    ],
)
def test_other_bytes_are_another_disk(rounds: list[tuple[dict[str, str], dict[str, str]]]) -> None:
    with pytest.raises(Unsafe, match="a and b read different bytes of volume v at 1 of"):
        compared(*rounds).conclude("v", ["a", "b"])
