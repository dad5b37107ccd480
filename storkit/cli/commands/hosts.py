"""Commands for hosts."""

from storkit.cli.commands.words import ACCEPT, HOST, Command, arg

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
)
