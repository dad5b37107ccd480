"""`make lab`: three hosts with real kernels, storkit on each and ssh between them, until you leave the prompt.

`make lab xen`: two of them with Xen.

With a terminal it opens a shell; without one it reads commands from standard input, so `echo "a storkit host list" |
make lab` works too. Everything is gone when the shell ends, however it ends.
"""

from __future__ import annotations

import argparse
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from tests.lab import Host, Lab, LabError, Unsupported

INVENTORY = "/etc/storkit/inventory.toml"
VOLUMES = "/var/lib/storkit/volumes"

_GREETING = """\

Three hosts are up: {a} and {b} run guests, s holds disks (/dev/ubdb, 4 GiB, blank). In this shell:

    {a} COMMAND...            run it on host {a}, through ssh; likewise {b} and s. `{a}` alone is a shell on {a}
    {a} storkit host check    storkit is on every host, from this working tree; {inventory} joins the three
    power_cut s; power_on s     pull a host's plug; boot it with the same disks
    cut {a} san1; heal {a} san1   lose every frame of a host on a network: lan, san1 or san2
{more}
Leave with `exit` or Ctrl-D; nothing stays behind.
"""
_XEN = """\
    h1 xl list                {a} and {b} are dom0s of Xen, emulated: everything takes ten times as long
    h1 xl create -c g1.cfg    a guest on the dom0's own disk guest.img, which writes lines (Ctrl-] leaves its console)
"""


def inventory(hosts: Sequence[str]) -> str:
    """The inventory of the lab: every host over ssh, and one pool on the storage host."""
    lines = [f'[hosts.{name}]\nurl = "ssh://root@{name}"\n' for name in hosts]
    lines.append(f'[pools.default]\nhost = "s"\ntype = "directory"\npath = "{VOLUMES}"\n')
    return "\n".join(lines)


def open_lab(lab: Lab, names: Sequence[str], xen: bool) -> None:
    started = time.monotonic()
    hosts = open_xen(lab) if xen else lab.hosts(*names)
    print(f"hosts {', '.join(names)} up in {time.monotonic() - started:.1f} s", file=sys.stderr)
    for host in hosts:
        host.put(inventory(names), INVENTORY)
        host.put("", "/root/.hushlogin")
    if "s" in names:
        storage = lab.host("s")
        storage.add_disk(4 << 30)
        storage.run(["mkdir", "-p", "-m", "700", VOLUMES])


def open_xen(lab: Lab) -> Sequence[Host]:
    from tests.lab.xen import XenLab, frozen

    dom0s = XenLab(lab, lambda text: print(text, file=sys.stderr))
    h1, h2, storage = dom0s.thaw()
    dom0s.install(h1, h2)
    for host in (h1, h2):
        host.run(["modprobe", "loop"])
        host.run(["losetup", "/dev/loop0", "/root/guest.img"])
        host.put(frozen.config("g1", "/dev/loop0"), "/root/g1.cfg")
    return h1, h2, storage


def shell_file(lab: Lab, names: Sequence[str], greeting: bool) -> str:
    """Bash's start-up file: one function for each host, and what can be done to them."""
    to = lab.cell.run_dir / "shared"
    ssh = f"ssh -F {to}/ssh/config"
    lines = [f'{name}() {{ if [ $# = 0 ]; then {ssh} {name}; else {ssh} $LAB_TTY {name} -- "${{@@Q}}"; fi; }}'
             for name in names]  # fmt: skip
    lines += [f'{verb}() {{ echo "{verb} $*" >{to}/asked; cat {to}/told; }}'
              for verb in ("power_cut", "power_on", "cut", "heal")]  # fmt: skip
    lines += ["PS1='lab> '", f"alias ssh='{ssh}'", f"alias scp='scp -F {to}/ssh/config'", "unset HISTFILE"]
    if greeting:
        lines.append(f"cat {to}/greeting")
        a, b = (*names, *names)[:2]
        more = _XEN.format(a=a, b=b) if a == "h1" else ""
        (lab.shared / "greeting").write_text(_GREETING.format(inventory=INVENTORY, a=a, b=b, more=more))
    (lab.shared / "shellrc").write_text("\n".join(lines) + "\n")
    return str(to / "shellrc")


def obey(lab: Lab) -> None:
    """Answer the shell's power and network functions, which reach us through two named pipes."""
    while True:
        try:
            verb, *words = (lab.shared / "asked").read_text().split() or [""]
        except FileNotFoundError:
            return  # the lab is closed
        try:
            if verb in ("power_cut", "power_on"):
                for name in words:
                    host = next(host for host in lab.known() if host.name == name)
                    host.power_off() if verb == "power_cut" else host.boot()
            elif verb in ("cut", "heal"):
                host = next(host for host in lab.known() if host.name == words[0])
                (host.cut if verb == "cut" else host.heal)(*words[1:])
            told = ""
        except (LabError, StopIteration, IndexError, ValueError) as error:
            told = f"{verb}: {error or 'no such host'}\n"
        (lab.shared / "told").write_text(told)


def shell(lab: Lab, names: Sequence[str]) -> int:
    for pipe in ("asked", "told"):
        os.mkfifo(lab.shared / pipe)
    threading.Thread(target=obey, args=(lab,), daemon=True).start()
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    size = shutil.get_terminal_size()
    os.environ["LAB_TTY"] = "-t" if terminal else "-T"
    file = shell_file(lab, names, greeting=terminal)
    if not terminal:
        script = f". {file}; shopt -s expand_aliases; . /dev/stdin"
        return subprocess.run(lab.cell.argv(["bash", "--norc", "-c", script])).returncode
    # The shell has a terminal and a PID namespace of its own: so it has job control, and what it leaves in the
    # background, which would keep that terminal open, ends with it.
    line = f"stty rows {size.lines} cols {size.columns}; exec bash --rcfile {file} -i"
    status = pty.spawn(
        lab.cell.argv(
            ["unshare", "--pid", "--fork", "--kill-child", "--", "setsid", "--ctty", "--wait", "bash", "-c", line]
        )
    )
    return os.waitstatus_to_exitcode(status)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__.splitlines()[0])
    parser.add_argument("hosts", nargs="*", default=["a", "b", "s"],
                        help="names of the hosts (a b s), or `xen`: h1 and h2 run Xen, s holds disks")  # fmt: skip
    names = parser.parse_args().hosts
    if xen := names == ["xen"]:
        names = ["h1", "h2", "s"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    try:
        with Lab(lambda text: print(text, file=sys.stderr)) as lab:
            open_lab(lab, names, xen)
            return shell(lab, names)
    except Unsupported as reason:
        print(f"no lab here: {reason}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
