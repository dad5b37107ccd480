"""Commands for guests and their migrations."""

from storkit.cli.commands.words import A_GUEST, GUEST, HOST, REMOVABLE, SOME_GUESTS, TO, VOLUME, Command, arg

COMMANDS = (
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
        "give guests their disks and start them",
        "guest:start",
        (SOME_GUESTS, arg("--on", help="the host (default: each one's first disk's)", **HOST)),
    ),
    Command(
        "guest",
        "stop",
        "shut guests down and take their disks back",
        "guest:stop",
        (
            SOME_GUESTS,
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
    Command(
        "guest",
        "diff",
        "show where a guest's files, or the hypervisor that has it, differ from what is kept",
        "guest:diff",
        (A_GUEST,),
    ),
    Command(
        "guest",
        "refresh",
        "keep what somebody has changed of a guest in its hypervisor (virsh edit)",
        "guest:refresh",
        (A_GUEST, arg("--force", help="also what opens more of its host than before", action="store_true")),
    ),
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
)
