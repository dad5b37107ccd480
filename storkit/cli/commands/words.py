"""What the tables of commands are written with, and the arguments that several commands have.

It imports nothing, so that `storkit --help` costs what argparse costs.
"""

from collections import namedtuple

Command = namedtuple("Command", "noun verb help function args")
"""`function` is `module:function` below storkit.cli, called with the session and the parsed options."""

Arg = namedtuple("Arg", "flags help kwargs")


def arg(*flags: str, help: str = "", **kwargs: object) -> Arg:
    """One argument; kwargs are argparse's, and `complete` names what completes it."""
    return Arg(flags, help, kwargs)


NOUNS = {
    "host": "the machines",
    "pool": "where volumes are made",
    "volume": "make, copy, import and delete disks",
    "image": "versions of golden images: build, seal, verify and prune them",
    "guest": "define, render, start and stop guests",
    "fleet": "many guests of one image, each a machine of its own",
    "migrate": "move a running guest, with its disk's right to write",
    "plan": "the journal of changes: resume or roll back one that was cut short",
    "hooks": "have a hypervisor ask for its guests' disks by itself, whoever starts or moves them",
    "hook": "what the hypervisors' hooks call",
}

HOST = {"metavar": "HOST", "complete": "hosts"}
GUEST = {"metavar": "GUEST", "complete": "guests"}
FLEET = {"metavar": "FLEET", "complete": "fleets"}
VOLUME = {"metavar": "VOLUME", "complete": "volumes"}
A_GUEST = arg("name", help="the guest", **GUEST)
SOME_GUESTS = arg("names", help="the guests; '*' stands for any characters", nargs="+", **GUEST)
A_FLEET = arg("name", help="the fleet", **FLEET)
MEMBERS = arg("members", help="some of its members (default: all)", nargs="*", **GUEST)
SOME_MEMBERS = arg("members", help="the members", nargs="*", **GUEST)
A_VOLUME = arg("name", help="the volume", **VOLUME)
A_POOL = arg("pool", help="the pool", metavar="POOL", complete="pools")
A_PLAN = arg("id", help="the plan", metavar="ID")
POOL = arg("--pool", help="the pool (default: the inventory's)", metavar="POOL", complete="pools")
ON = arg("--on", help="the host", required=True, **HOST)
TO = arg("--to", help="the destination: a host's name or URL", required=True, **HOST)
AT_ONCE = arg("--at-once", help="how many guests move at the same time (default: 2)", type=int, default=2, metavar="N")
IF_EXISTS = arg("--if-exists", help="one that is not there is as good as deleted", action="store_true")
ACCEPT = arg(
    "--file", help="the file that says what this host accepts (default: /etc/storkit/accept.toml)", metavar="FILE"
)
HOST_FILE = arg(
    "--file", help="the file of what this host's hooks know (default: /etc/storkit/host.toml)", metavar="FILE"
)
REMOVABLE = (
    "disks", "nvram", "root", "nics", "kernel", "initrd", "cmdline", "firmware", "machine", "console", "agent",
)  # fmt: skip
"""What `guest define --without` can name."""
FORMATS = ("raw", "qcow2", "vmdk", "vpc", "vdi")

GLOBAL = (
    arg("--json", help="print the result as JSON on stdout", action="store_true"),
    arg("-n", "--dry-run", help="print the plan and change nothing", action="store_true"),
    arg("-v", "--verbose", help="say what is done, with times", action="store_true"),
    arg("--inventory", help="the inventory file (default: /etc/storkit/inventory.toml)", metavar="FILE"),
    arg("--state", help="where plans are kept (default: /var/lib/storkit)", metavar="DIR"),
)
