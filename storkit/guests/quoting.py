"""Values quoted for the syntax of a hypervisor's configuration."""

from __future__ import annotations

import json

from storkit.core.errors import UsageError
from storkit.guests.check import text_problem


def quote_option(value: object) -> str:
    """A value inside a QEMU option string `key=value,key=value`: a comma is doubled (qemu(1))."""
    return str(value).replace(",", ",,")


def quote_json(value: object) -> str:
    """A value as JSON on one line, as QEMU's -blockdev takes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def quote_xl(value: object) -> str:
    """A value as a string of xl.cfg(5), which has no escape for control characters that its readers all agree on.

    Raises UsageError for what cannot be written.
    """
    text = str(value)
    problem = text_problem(text)
    if problem:
        raise UsageError(f"{text!r} cannot go into an xl configuration: {problem}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
