"""A dom0 whose `xl migrate` goes through cutter.py."""

from __future__ import annotations

from pathlib import Path

from tests.lab.xen.cutter import GO, HELD
from tests.lab.xen.dom0 import Dom0

CUTTER = Path(__file__).with_name("cutter.py")
# Instead of xl: the last word of `xl migrate` is the program that carries the stream.
XL = """\
#!/usr/bin/python3
import os, sys
words = sys.argv[1:]
if words[:1] == ["migrate"]:
    words[-1] = "exec /usr/bin/python3 /root/cutter.py {how} {when} '" + words[-1].replace("'", "'\\\\''") + "'"
os.execv("/usr/sbin/xl", ["xl", *words])
"""
WRAPPER = "/usr/local/sbin/xl"


def cut(host: Dom0, when: str, how: str = "cut") -> None:
    """From now on migrations from this host are cut, or held, at that point of their handshake."""
    host.put(CUTTER, "/root/cutter.py")
    host.put(XL.format(how=how, when=when), WRAPPER, mode=0o755)


def uncut(host: Dom0) -> None:
    host.run(["rm", "-f", WRAPPER, str(HELD), str(GO)])


def let_go(host: Dom0) -> None:
    """A migration that is held goes on, if somebody still carries it."""
    host.run(["timeout", "10", "sh", "-c", f"echo >{GO}"], check=False)
