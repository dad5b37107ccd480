"""The table of commands: the parser, the man page and the completions derive from it. Examples: manual/examples.py.

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
    "guest": "define, render, start and stop guests",
    "migrate": "move a running guest, with its disk's right to write",
    "plan": "the journal of changes: resume or roll back one that was cut short",
    "hooks": "have a hypervisor ask for its guests' disks by itself, whoever starts or moves them",
    "hook": "what the hypervisors' hooks call",
}

HOST = {"metavar": "HOST", "complete": "hosts"}
GUEST = {"metavar": "GUEST", "complete": "guests"}
VOLUME = {"metavar": "VOLUME", "complete": "volumes"}
A_GUEST = arg("name", help="the guest", **GUEST)
A_VOLUME = arg("name", help="the volume", **VOLUME)
A_POOL = arg("pool", help="the pool", metavar="POOL", complete="pools")
A_PLAN = arg("id", help="the plan", metavar="ID")
POOL = arg("--pool", help="the pool (default: the inventory's)", metavar="POOL", complete="pools")
ON = arg("--on", help="the host", required=True, **HOST)
TO = arg("--to", help="the destination: a host's name or URL", required=True, **HOST)
ACCEPT = arg(
    "--file", help="the file that says what this host accepts (default: /etc/storkit/accept.toml)", metavar="FILE"
)
HOST_FILE = arg(
    "--file", help="the file of what this host's hooks know (default: /etc/storkit/host.toml)", metavar="FILE"
)
REMOVABLE = ("disks", "root", "nics", "kernel", "initrd", "cmdline", "machine", "console")
"""What `guest define --without` can name."""
FORMATS = ("raw", "qcow2", "vmdk", "vpc", "vdi")

GLOBAL = (
    arg("--json", help="print the result as JSON on stdout", action="store_true"),
    arg("-n", "--dry-run", help="print the plan and change nothing", action="store_true"),
    arg("-v", "--verbose", help="say what is done, with times", action="store_true"),
    arg("--inventory", help="the inventory file (default: /etc/storkit/inventory.toml)", metavar="FILE"),
    arg("--state", help="where plans are kept (default: /var/lib/storkit)", metavar="DIR"),
)

COMMANDS = (
    Command("host", "list", "list the hosts", "host:list_", ()),
    Command(
        "host",
        "check",
        "see whether hosts answer, and what they miss",
        "host:check",
        (arg("hosts", help="the hosts (default: all)", nargs="*", **HOST),),
    ),
    Command(
        "host",
        "restore",
        "bring back exports and attachments that ended, as by a reboot",
        "host:restore",
        (
            arg("hosts", help="the hosts (default: all)", nargs="*", **HOST),
            arg("--boot", help="this machine, by what it was last told; for its boot", action="store_true"),
            ACCEPT,
        ),
    ),
    Command(
        "host",
        "accept",
        "allow coordinators to use pools, programs and directories of this machine; without arguments: show which",
        "host:accept",
        (
            arg(
                "targets",
                help="pool:NAME, transport:NAME or hypervisor:NAME, to be accepted as a coordinator last named it",
                nargs="*",
                metavar="TARGET",
            ),
            arg("--from-inventory", help="accept everything that the inventory names for this host", **HOST),
            arg(
                "--import-dir",
                help="let images in this directory be imported",
                action="append",
                default=[],
                metavar="DIR",
            ),
            arg(
                "--export-dir",
                help="let images be exported into this directory",
                action="append",
                default=[],
                metavar="DIR",
            ),
            arg("--templates", help="make guests from the templates in this directory", metavar="DIR"),
            arg(
                "--remove",
                help="accept this target or directory no longer",
                action="append",
                default=[],
                metavar="TARGET|DIR",
            ),
            ACCEPT,
        ),
    ),
    Command("pool", "list", "list the pools and how full they are", "host:pools", ()),
    Command(
        "pool",
        "attach",
        "attach all volumes of a pool on a host, each under its stable path",
        "volume:attach_pool",
        (A_POOL, ON, arg("--read-only", help="without the right to write", action="store_true")),
    ),
    Command("pool", "detach", "detach all volumes of a pool from a host", "volume:detach_pool", (A_POOL, ON)),
    Command(
        "volume",
        "create",
        "make an empty volume",
        "volume:create",
        (
            arg("name", help="the new volume's name", metavar="NAME"),
            arg("size", help="its size: 512MiB, 10G, 1.5T (powers of 1024); 10GB is of 1000", metavar="SIZE"),
            POOL,
        ),
    ),
    Command(
        "volume",
        "adopt",
        "make a volume of a file or a logical volume that is there, without copying it",
        "volume:adopt",
        (
            arg(
                "place",
                help="on the host: the path of a file (raw, qcow2) or of a device, or VG/LV",
                metavar="PATH|VG/LV",
            ),
            arg("name", help="the volume's name (default: what it is called)", nargs="?", metavar="NAME"),
            arg("--on", help="the host (default: the default pool's)", **HOST),
            arg(
                "--pool",
                help="the pool (default: where it lies, or the first of the host that can take it)",
                metavar="POOL",
                complete="pools",
            ),
        ),
    ),
    Command(
        "volume",
        "release",
        "give volumes back: their bytes stay, where they were when they were adopted, and are volumes no more",
        "volume:release",
        (
            arg("names", help="the volumes", nargs="+", **VOLUME),
            arg("--force", help="also disks of guests that are defined", action="store_true"),
        ),
    ),
    Command(
        "volume",
        "import",
        "make a volume from an image file (raw, qcow2, vmdk, vpc, vdi; gz, xz or zst compressed)",
        "volume:import_",
        (
            arg(
                "file",
                help="the image file on the pool's host; - is standard input (./- a file of that name)",
                metavar="FILE",
            ),
            arg("--tree", help="FILE is a tar, or a directory: a guest's root over NFS", action="store_true"),
            arg("name", help="the new volume's name", metavar="NAME"),
            POOL,
            arg("--format", help="the image's format (default: by its content)", choices=FORMATS),
            arg("--golden", help="a golden image: never written, cheap to clone", action="store_true"),
            arg("--size", help="make the volume larger than the image", metavar="SIZE"),
            arg("--max-size", help="refuse a larger image (default: 64TiB)", metavar="SIZE"),
            arg("--checksum", help="refuse the file unless it has this digest", metavar="sha256:HEX"),
        ),
    ),
    Command(
        "volume",
        "export",
        "write a volume to an image file",
        "volume:export",
        (
            A_VOLUME,
            arg(
                "file",
                help="the new image file, on the volume's host; - is standard output (./- a file of that name)",
                metavar="FILE",
            ),
            arg("--format", help="its format (default: raw)", choices=FORMATS, default="raw"),
            arg("--compress", help="compress it (qcow2, vmdk)", action="store_true"),
        ),
    ),
    Command(
        "volume",
        "clone",
        "copy a volume by the cheapest means its pool has",
        "volume:clone",
        (
            arg("source", help="the volume to copy", **VOLUME),
            arg("names", help="the new volumes' names", nargs="+", metavar="NAME"),
            arg("--size", help="make the clones larger", metavar="SIZE"),
        ),
    ),
    Command(
        "volume",
        "snapshot",
        "keep a volume as it is now, under another name",
        "volume:snapshot",
        (arg("source", help="the volume", **VOLUME), arg("name", help="the snapshot's name", metavar="NAME")),
    ),
    Command(
        "volume",
        "resize",
        "give a volume another size",
        "volume:resize",
        (
            A_VOLUME,
            arg("size", help="the new size, as for create", metavar="SIZE"),
            arg(
                "--shrink",
                help="allow a smaller size, which cuts off data: give this option twice",
                action="count",
                default=0,
            ),
        ),
    ),
    Command(
        "volume",
        "delete",
        "delete volumes",
        "volume:delete",
        (
            arg("names", help="the volumes", nargs="+", **VOLUME),
            arg("--force", help="also disks of guests that are defined", action="store_true"),
        ),
    ),
    Command("volume", "list", "list the volumes", "volume:list_", (POOL,)),
    Command("volume", "show", "show a volume and who has it", "volume:show", (A_VOLUME,)),
    Command(
        "",
        "attach",
        "attach a volume on a host, under its stable path",
        "volume:attach",
        (
            arg("volume", help="the volume", **VOLUME),
            ON,
            arg("--read-only", help="without the right to write", action="store_true"),
        ),
    ),
    Command(
        "", "detach", "detach a volume from a host", "volume:detach", (arg("volume", help="the volume", **VOLUME), ON)
    ),
    Command(
        "",
        "verify",
        "prove that hosts see one and the same disk",
        "volume:verify",
        (
            arg("volume", help="the volume", **VOLUME),
            arg("--on", help="the hosts (default: all that have it attached)", nargs="+", **HOST),
        ),
    ),
    Command(
        "guest",
        "define",
        "describe a guest and its disks",
        "guest:define",
        (
            arg("name", help="the guest's name", metavar="NAME"),
            arg("--disk", help="a volume, in order; VOLUME:ro is read-only", action="append", **VOLUME),
            arg("--root", help="a volume that is a tree: the guest mounts it as its root over NFS", **VOLUME),
            arg("--address", help="the guest's own IPv4 address, for --root: 10.0.1.50/24", metavar="ADDRESS/BITS"),
            arg(
                "--gateway",
                help="the gateway between the guest and the server of its root, if there is one",
                metavar="ADDRESS",
            ),
            arg("--memory", help="its memory (default: 512MiB)", metavar="SIZE"),
            arg("--vcpus", help="its processors (default: 1)", type=int, metavar="N"),
            arg("--kernel", help="boot this kernel, not the disk's boot loader", metavar="FILE"),
            arg("--initrd", help="the initial RAM disk for --kernel", metavar="FILE"),
            arg("--cmdline", help="the command line for --kernel", metavar="TEXT"),
            arg("--machine", help="the machine type", metavar="TYPE"),
            arg("--bridge", help="a network card on this bridge", action="append", metavar="BRIDGE"),
            arg("--console", help="write the serial console to this file", metavar="FILE"),
            arg("--hypervisor", help="what runs it (default: the inventory's)", metavar="NAME"),
            arg("--replace", help="change what is given of a guest that exists, and nothing else", action="store_true"),
            arg(
                "--without",
                help="with --replace: remove this from the guest",
                action="append",
                choices=REMOVABLE,
            ),
        ),
    ),
    Command(
        "guest",
        "import",
        "describe a guest from its libvirt XML, xl.cfg or QEMU command line",
        "guest:import_",
        (
            arg("file", help="the configuration file", metavar="FILE"),
            arg("--disk", help="TARGET=VOLUME: the volume that a disk is now", action="append", default=[]),
            arg(
                "--local", help="a TARGET that each host has of its own", action="append", default=[], metavar="TARGET"
            ),
            arg("--name", help="another name", metavar="NAME"),
        ),
    ),
    Command(
        "guest",
        "adopt",
        "take guests that libvirt, or a configuration file, has already, with their disks as they are",
        "guest:adopt",
        (
            arg("names", help="the guests, as their hypervisor calls them", nargs="*", metavar="NAME"),
            arg("--all", help="all guests of the host that storkit does not know", action="store_true"),
            arg("--on", help="the host (default: the default pool's)", **HOST),
            arg("--disk", help="TARGET=VOLUME: what the volume of a disk is called", action="append", default=[]),
            arg(
                "--local", help="a TARGET that each host has of its own", action="append", default=[], metavar="TARGET"
            ),
            arg("--config", help="the guest's configuration file, of a hypervisor that keeps none", metavar="FILE"),
        ),
    ),
    Command(
        "guest",
        "release",
        "give an adopted guest that does not run back, with its disks where they were",
        "guest:release",
        (A_GUEST,),
    ),
    Command(
        "guest",
        "clone",
        "make new guests like another one, with clones of its disks",
        "guest:clone",
        (
            arg("source", help="the guest to copy", **GUEST),
            arg("names", help="the new guests' names", metavar="NAME", nargs="*"),
            arg("--count", help="how many, of the names that --name makes", type=int, metavar="N"),
            arg("--name", help="a name with its number in it: web%%02d", dest="template", metavar="NAME"),
            arg("--set", help="change a key: memory=1GiB, disks.0.volume=web2", action="append", default=[]),
        ),
    ),
    Command(
        "guest",
        "render",
        "print a guest's configuration",
        "guest:render",
        (
            A_GUEST,
            arg(
                "--for",
                help="the hypervisor (default: the guest's)",
                choices=("xl", "libvirt", "qemu", "uml"),
                dest="kind",
            ),
            arg("--on", help="show its disks as this host has them", **HOST),
        ),
    ),
    Command(
        "guest",
        "start",
        "give a guest its disks and start it",
        "guest:start",
        (A_GUEST, arg("--on", help="the host (default: its first disk's)", **HOST)),
    ),
    Command(
        "guest",
        "stop",
        "shut a guest down and take its disks back",
        "guest:stop",
        (
            A_GUEST,
            arg("--force", help="take its power away", action="store_true"),
            arg("--on", help="stop it only if it runs on this host", **HOST),
            arg("--timeout", help="wait this long for it (default: 60)", type=float, default=60.0, metavar="SECONDS"),
        ),
    ),
    Command("guest", "resume", "let a paused guest go on, whose disk was full or failed", "guest:resume", (A_GUEST,)),
    Command(
        "guest",
        "save",
        "put a running guest to sleep: its memory goes into a file, and nobody writes its disks until it wakes up",
        "asleep:save",
        (
            A_GUEST,
            arg(
                "file",
                help="a new file on the host where it runs (default: a place of that host's own)",
                nargs="?",
                metavar="FILE",
            ),
        ),
    ),
    Command(
        "guest",
        "restore",
        "wake a sleeping guest up, on any host that reaches its disks and its memory's file",
        "asleep:restore",
        (
            A_GUEST,
            arg("file", help="the file on that host (default: where it was saved)", nargs="?", metavar="FILE"),
            arg("--on", help="the host (default: where it was saved)", **HOST),
        ),
    ),
    Command(
        "guest",
        "discard",
        "give a sleeping guest's memory up: its disks are as after a power cut",
        "asleep:discard",
        (A_GUEST, arg("--force", help="yes, its memory is to be lost", action="store_true")),
    ),
    Command("guest", "list", "list the guests and where they run", "guest:list_", ()),
    Command("guest", "show", "show a guest", "guest:show", (A_GUEST,)),
    Command(
        "guest",
        "commit",
        "keep what a guest's files say with its first volume, where every administrator finds it",
        "guest:commit",
        (A_GUEST,),
    ),
    Command(
        "guest",
        "checkout",
        "write a guest's files from what is kept with its first volume",
        "guest:checkout",
        (
            A_GUEST,
            arg("--force", help="also over what its files say and nothing keeps", action="store_true"),
            arg("--generation", help="the texts of this one of the last ten", type=int, default=0, metavar="N"),
        ),
    ),
    Command("guest", "diff", "show where a guest's files differ from what is kept", "guest:diff", (A_GUEST,)),
    Command("guest", "edit", "edit a guest in $EDITOR, check it, and keep it", "guest:edit", (A_GUEST,)),
    Command("guest", "delete", "forget a guest that does not run; its volumes stay", "guest:delete", (A_GUEST,)),
    Command(
        "migrate", "run", "move a running guest to another host, with its disks' rights", "migrate:run", (A_GUEST, TO)
    ),
    Command(
        "migrate",
        "prepare",
        "get the destination ready and let it write, for a tool that moves the guest",
        "migrate:prepare",
        (A_GUEST, TO),
    ),
    Command("migrate", "finish", "after the hypervisor has moved it: close the window", "migrate:finish", (A_GUEST,)),
    Command("migrate", "abort", "give up a prepared migration", "migrate:abort", (A_GUEST,)),
    Command(
        "migrate",
        "status",
        "show where guests are and who may write",
        "migrate:status",
        (arg("name", help="the guest (default: all)", nargs="?", **GUEST),),
    ),
    Command("migrate", "cleanup", "make everything match where the guest really runs", "migrate:cleanup", (A_GUEST,)),
    Command(
        "",
        "fence",
        "cut a host off every disk",
        "fence:fence",
        (
            arg("host", help="the host", **HOST),
            arg(
                "--confirmed-off",
                action="store_true",
                help="a person has seen that the host is off: treat it so until unfence",
            ),
        ),
    ),
    Command("", "unfence", "let a fenced host in again", "fence:unfence", (arg("host", help="the host", **HOST),)),
    Command("plan", "list", "list the plans, oldest first", "plan:list_", ()),
    Command("plan", "show", "show a plan and how far it came", "plan:show", (A_PLAN,)),
    Command("plan", "resume", "carry out the steps of a plan that are not done", "plan:resume", (A_PLAN,)),
    Command("plan", "rollback", "undo the steps of a plan that are done", "plan:rollback", (A_PLAN,)),
    Command(
        "hooks",
        "install",
        "install the hooks of the hypervisors on this host, and say which managers they ask",
        "hooks:install",
        (
            arg("--name", help="what the managers, and inventories, call this host", metavar="HOST"),
            arg(
                "--manager",
                help="a host where volumes are, and its URL: ssh://USER@HOST, or local for this host itself",
                action="append",
                default=[],
                metavar="NAME=URL",
            ),
            arg("--identity", help="the file of the private key that is bound to this host there", metavar="FILE"),
            arg(
                "--address",
                help="where the manager's servers are (default: the host of its URL)",
                action="append",
                default=[],
                metavar="ADDRESS",
            ),
            arg(
                "--volumes",
                help="ask this manager for volumes of these names alone",
                action="append",
                default=[],
                metavar="GLOB",
            ),
            arg(
                "--set",
                help="a setting of this host's, as in the inventory's [transports]: nbd.attach=kernel",
                action="append",
                default=[],
                metavar="TRANSPORT.KEY=VALUE",
            ),
            HOST_FILE,
        ),
    ),
    Command(
        "hooks",
        "status",
        "show which hooks are installed on this host, and whether its managers answer",
        "hooks:status",
        (HOST_FILE,),
    ),
    Command("hooks", "remove", "remove the hooks from this host, and leave what is attached", "hooks:remove", ()),
    Command(
        "hooks",
        "admit",
        "on a manager: let the hooks of a host ask for volumes of this machine",
        "hooks:admit",
        (
            arg("host", help="the host", **HOST),
            arg(
                "--volumes",
                help="those that it may have a part in: globs of POOL/NAME",
                action="append",
                default=[],
                metavar="POOL/GLOB",
            ),
            arg("--address", help="where the host comes from", metavar="ADDRESS"),
            arg("--here", help="the host is this machine", action="store_true"),
            arg("--key", help="the host's public key, for the line that is printed", metavar="FILE"),
            arg("--from-inventory", help="this machine is the inventory's host of this name", **HOST),
            arg("--remove", help="admit the host no longer", action="store_true"),
            ACCEPT,
        ),
    ),
    Command(
        "hook",
        "xen",
        "do what xl calls its script block-storkit for; XENBUS_PATH says for which disk",
        "hooks:xen",
        (arg("event", help="what happens to the disk", choices=("add", "remove")), HOST_FILE),
    ),
    Command(
        "hook",
        "libvirt",
        "do what libvirt calls its hook for; the domain's XML is on stdin",
        "hooks:libvirt",
        (
            arg("guest", help="the domain", metavar="GUEST"),
            arg("operation", help="what happens to it", metavar="OPERATION"),
            arg("sub", help="begin or end", metavar="SUB-OPERATION"),
            arg("extra", help="why", metavar="EXTRA"),
            HOST_FILE,
        ),
    ),
    Command("", "status", "show hosts, guests, attachments and unfinished plans", "host:status", ()),
    Command(
        "",
        "completion",
        "print a shell's completion script",
        "completion:print_",
        (arg("shell", help="the shell", choices=("bash", "zsh", "fish")),),
    ),
    Command(
        "",
        "names",
        "print the names that this machine knows without asking another, for completion",
        "completion:names",
        (arg("kind", help="whose names", choices=("hosts", "pools", "volumes", "guests")),),
    ),
    Command(
        "",
        "agent",
        "serve a coordinator on stdin and stdout",
        "host:agent",
        (
            arg(
                "--grade",
                help="what the coordinator's key may do: look, do all with volumes, or run guests too (default: all)",
                choices=("read", "storage", "guests"),
                default="",
            ),
            arg("--for", help="serve the hooks of this host's hypervisor alone", dest="for_host", **HOST),
            ACCEPT,
        ),
    ),
)
