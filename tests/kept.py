"""What storkit keeps by right when everything that was made is deleted again: one list, each with its reason.

A file that is not here and is left behind is a fault of storkit's, wherever a test finds it.
"""

from __future__ import annotations

import re

STATE = {
    "epoch": "the count of commands that may change rights: a late act of an earlier one is refused by it",
    "setup.json": "what the host was last told of the inventory: it serves by that after a boot",
    "pools/[^/]+": "where a pool with a directory of its own was: if it is not mounted, nothing is made in its place",
    r"\w+/unfenced/[^/]+": "which change last let a host in: no earlier one may undo that",
    r"(lvm-)?guests/([^/]+/)*\.lock": "of a pool's kept guests: one that is removed excludes nobody who waits for it",
}
"""Below a host's state directory."""

RUN = {
    r"qemu-(accel|machines)\.json": "what QEMU can do there; it is found out anew when it is lost",
}
"""Below a host's run directory."""

COORDINATOR = {
    "hints.json": "where volumes were last: it only makes looking for them quicker",
    "hosts.json": "hosts that were given a disk by their URL: grants name them so",
    "plans/.*": "the journals of plans, also of those that have ended: `plan list` shows them",
}
"""Below the state directory of who gives the commands, which in the lab is a host's as well."""


LOCKS = {
    r".*lock": "the file of a lock, which would exclude nobody if it were removed under who waits for it",
    r"use/[^/]+\.lock": "of a volume that is in use",
}
"""Below a host's run directory, where tests do not count locks."""


def below(directory: str, *kinds: dict[str, str]) -> str:
    """A regular expression that matches, up to its end or a space, the path of what is kept below a directory."""
    return rf"{re.escape(directory)}/({'|'.join(path for kind in kinds for path in kind)})(?= |$)"


def by_right(path: str, *kinds: dict[str, str]) -> bool:
    """Whether a path, relative to the directory that the kinds are for, is of what is kept."""
    return any(re.fullmatch(each, path) for kind in kinds for each in kind)
