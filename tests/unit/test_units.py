"""Sizes, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storkit.core.errors import UsageError
from storkit.core.units import MAX_SIZE, SECTOR, exact_size, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1073741824B", 1 << 30),
        ("512b", 512),
        ("1B", 512),
        ("513B", 1024),
        ("1K", 1024),
        ("1k", 1024),
        ("512 MiB", 512 << 20),
        ("10G", 10 << 30),
        *((f"10{unit}", 10 << 30) for unit in ("g", "GiB", "gib", "GIB", "GiB", "giB")),
        *((f"10{unit}", 10_000_000_000) for unit in ("GB", "gb", "Gb", "gB", " gb")),
        ("3kb", 3000),
        ("1TB", 10**12),
        ("1pb", 10**15),
        ("1.5GB", 1_500_000_000),
        ("1.5T", 3 << 39),
        ("0.0001G", 107520),
        (" 2TiB ", 2 << 40),
        ("7E", 7 << 60),
        (f"{MAX_SIZE - 511}B", MAX_SIZE - 511),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == -(-size // SECTOR) * SECTOR


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", "0G", "0.0M", "-1", "-10G", "+5G", "1.5.G", "1.G", ".5G", "G", "10 X", "10GG", "1e9", "0x10", "1,5G",
     "10G\n1", "١٠", "١٠G", "1_000", "nan", "inf", f"{2**63}B", "8E", "9999999999999T", "10 0G", "10  G", "10iB",
     "10KK", "1.5B", "10 bytes", "10GiBs", "1e3G", "1/2G", "10K B"],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert repr(text) in caught.value.message and caught.value.hint and caught.value.exit_code == 2


@given(st.integers(min_value=1, max_value=MAX_SIZE // SECTOR))
def test_whole_sectors_come_back_as_they_are(sectors: int) -> None:
    assert parse_size(f"{sectors * SECTOR}B") == sectors * SECTOR


@given(st.integers(min_value=0, max_value=1000), st.sampled_from("KMGTP"), st.integers(min_value=0, max_value=9))
def test_a_fraction_is_rounded_up_to_a_sector(whole: int, unit: str, tenth: int) -> None:
    factor = 1024 ** ("KMGTP".index(unit) + 1)
    exact = (whole * 10 + tenth) * factor / 10
    if exact:
        size = parse_size(f"{whole}.{tenth}{unit}")
        assert size % SECTOR == 0 and 0 <= size - exact < SECTOR + 1


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        size = parse_size(text)
    except UsageError:
        return
    assert 0 < size <= MAX_SIZE and size % SECTOR == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (512, "512B"),
        (1024, "1KiB"),
        (1536, "1.5KiB"),
        (10 << 30, "10GiB"),
        (7 << 60, "7EiB"),
        (-1024, "-1KiB"),
    ],
)
def test_printing(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(min_value=1, max_value=1 << 62))
def test_what_is_printed_is_near_and_can_be_read_again(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= max(SECTOR, size * 0.06)


@pytest.mark.parametrize("text", ["10", "512", "1073741824", "1.5", " 10 ", "0"])
def test_a_number_without_a_unit_is_refused_and_the_hint_can_be_typed(text: str) -> None:
    with pytest.raises(UsageError, match="has no unit") as caught:
        parse_size(text)
    number = text.strip()
    assert f"write {number}GiB" in caught.value.hint
    assert (f"{number}B" in caught.value.hint) is ("." not in number)


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 5000 + "G", "0." + "1" * 5000 + "G"])
def test_endless_digits_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert len(caught.value.message) < 120


@given(st.integers(min_value=1, max_value=MAX_SIZE // SECTOR))
def test_a_size_in_a_hint_is_the_very_size(sectors: int) -> None:
    assert parse_size(exact_size(sectors * SECTOR)) == sectors * SECTOR
