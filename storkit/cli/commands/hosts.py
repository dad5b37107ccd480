"""Commands for hosts."""

from storkit.cli.commands.words import ACCEPT, AT_ONCE, GUEST, HOST, Command, arg

_COPIED = (
    arg("--file", help="the storkit.pyz to copy (default: the one that is running)", metavar="FILE"),
    arg("--program", help="where it goes there (default: /usr/local/bin/storkit)", metavar="PATH",
        default="/usr/local/bin/storkit"),
)  # fmt: skip

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
        "add",
        "bring a host in: copy storkit to it, write it into the inventory, and check it",
        "host:add",
        (
            arg("name", help="its name from now on", metavar="NAME"),
            arg("url", help="ssh://[USER@]HOST[:PORT], or local:DIRECTORY", metavar="URL"),
            arg("--address", help="where other hosts reach it (default: as its URL says)", metavar="ADDRESS"),
            arg("--host-state", help="its state directory (default: /var/lib/storkit)", metavar="DIR"),
            *_COPIED,
        ),
    ),
    Command(
        "host",
        "upgrade",
        "copy this storkit to hosts, one after another; their guests go on running",
        "host:upgrade",
        (arg("hosts", help="some of them (default: all that ssh reaches)", nargs="*", **HOST), *_COPIED),
    ),
    Command(
        "host",
        "remove",
        "take a host that has nothing any more out of the inventory",
        "host:remove",
        (arg("host", help="the host", **HOST),),
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
        "drain",
        "move all guests away from a host, live, and keep new ones off it",
        "host:drain",
        (
            arg("host", help="the host", **HOST),
            arg("--to", help="where they may go (default: any other host)", action="append", default=[], **HOST),
            arg(
                "--first",
                help="guests that move before the others; '*' stands for any characters",
                action="append",
                default=[],
                **GUEST,
            ),
            AT_ONCE,
            arg("--shutdown-rest", help="shut those down that cannot move", action="store_true"),
            arg(
                "--timeout",
                help="seconds that each of these has for it (default: 60)",
                type=float,
                default=60.0,
                metavar="SECONDS",
            ),
        ),
    ),
    Command(
        "host",
        "evacuate",
        "cut a host that has died off every disk, and start its guests on others",
        "host:evacuate",
        (
            arg("host", help="the host", **HOST),
            arg("--to", help="where they may go (default: any other host)", action="append", default=[], **HOST),
            arg(
                "--first",
                help="guests that are started before the others; '*' stands for any characters",
                action="append",
                default=[],
                **GUEST,
            ),
            arg(
                "--confirmed-off",
                action="store_true",
                help="a person has seen that the host is off: treat it so until unfence",
            ),
        ),
    ),
    Command("host", "undrain", "let a host take guests again", "host:undrain", (arg("host", help="the host", **HOST),)),
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
)
