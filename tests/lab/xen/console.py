"""What a guest tells on its console, which xenconsoled keeps in a file of its dom0."""

from __future__ import annotations

from tests.lab.xen.dom0 import Dom0
from tests.lab.xen.frozen import LOG

# It waits for lines rather than asks for them again and again: each question costs a dom0 half a second. What grep
# finds is printed: where its output is /dev/null it ends at its first line, and tail is never told.
_WAIT = f"""\
until set -- {LOG} && [ -e "$1" ]; do sleep 1; done
tail -qn 0 -F "$@" 2>/dev/null | grep -am "$0" 'seq '
"""


def wait_for_lines(host: Dom0, lines: int, seconds: float) -> None:
    """Wait until the guest has told of so many lines more on this host."""
    host.run(["sh", "-c", _WAIT, str(lines)], timeout=seconds)
