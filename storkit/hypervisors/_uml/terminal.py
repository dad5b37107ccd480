"""The console of a guest that people type at: its /dev/tty1, which is a pseudo-terminal of the host's.

User-Mode Linux opens one when the first program in the guest opens tty1, as a getty does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Ctrl-] interrupts, as it leaves other consoles; every other key is the guest's. What is typed comes by another number
# than 0, which a shell takes from what it starts in the background. When the guest ends, so does the `cat` that shows.
# The terminal is opened once: when its last user closes it, the guest's kernel hangs up.
_SHOW = """\
trap 'kill "$other" 2>/dev/null; [ -z "$saved" ] || { stty "$saved"; echo; }' EXIT
trap 'exit 0' INT
exec 3<&0 4<>"$1"
stty raw -echo <&4 || exit
if [ -t 0 ]; then
    saved=$(stty -g)
    stty raw -echo isig intr ^] quit undef susp undef
    printf 'the console of %s; Ctrl-] leaves it\r\n' "$0" >&2
    cat <&3 >&4 & other=$!
    cat <&4 2>/dev/null
else
    cat <&4 2>/dev/null & other=$!
    cat >&4
fi
exit 0
"""


def program(name: str, terminal: Path) -> list[str]:
    """What shows that of guest `name` on a terminal, until Ctrl-] or the guest's end; without one, until the end of the
    standard input."""
    return ["sh", "-c", _SHOW, name, str(terminal)]


def find(pid: int) -> Path | None:
    """The pseudo-terminal that process `pid`, or one that it has started, is the master of; None: there is none.

    The kernel of this host is asked, not the guest's: what a guest says could name the terminal of somebody else.
    """
    for one in _descendants(pid):
        with suppress(OSError):
            for link in Path(f"/proc/{one}/fd").iterdir():
                with suppress(OSError):
                    if not str(link.readlink()).endswith("/ptmx"):
                        continue
                    # proc(5); fs/proc/fd.c and ptmx_fops of drivers/tty/pty.c
                    said = Path(f"/proc/{one}/fdinfo/{link.name}").read_text()
                    if number := re.search(r"^tty-index:\s*(\d+)$", said, re.MULTILINE):
                        return Path("/dev/pts") / number[1]
    return None


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _descendants(int(child))
