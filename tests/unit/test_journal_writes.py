"""A journal that cannot be written stops its plan before the next step acts, and stays readable."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storkit.core.errors import Conflict
from storkit.core.journal import Journals
from storkit.core.plan import Plan


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes (setrlimit(2)): a write across the limit is cut short, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_line_cut_short_is_an_error_and_leaves_no_trace(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journal = journals.create(Plan("p", "try", [], []))
    journal.start("1.1", None)
    size = journal.path.stat().st_size
    with largest_file(size + 10), pytest.raises(Conflict, match="no space left"):
        journal.start("2.1", {"some": "thing"})
    assert journal.path.stat().st_size == size
    journal.done("1.1", 1)
    journal.close()
    assert list(journals.read("p").started) == ["1.1"]


def test_a_plan_is_carried_out_by_one_command(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journal = journals.create(Plan("p", "try", [], []))
    with pytest.raises(Conflict, match="carried out by another command"):
        journals.reopen("p")
    journal.close()
    journals.reopen("p").close()
