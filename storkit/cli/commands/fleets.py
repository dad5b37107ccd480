"""Commands for fleets: many guests of one image."""

from storkit.cli.commands.words import A_FLEET, HOST, MEMBERS, SOME_MEMBERS, VOLUME, Command, arg

_START = arg("--start", help="and start them", action="store_true")
_ALL = arg("--all", help="all of its members", action="store_true")
_TIMEOUT = arg("--timeout", help="seconds to wait (default: %(default)s)", type=float, default=300.0, metavar="N")
COMMANDS = (
    Command(
        "fleet",
        "create",
        "make guests of one golden image, each a machine of its own; or what is missing of a fleet",
        "fleet:create",
        (
            arg("name", help="the fleet's name: its members are NAME-01 and so on", metavar="NAME"),
            arg("--image", help="the golden image", required=True, **VOLUME),
            arg("--count", help="how many", type=int, required=True, metavar="N"),
            arg("--on", help="hosts, over which they are spread (default: the image's)", nargs="+", default=[], **HOST),
            arg("--memory", help="the memory of each (default: 512MiB)", default="512MiB", metavar="SIZE"),
            arg("--vcpus", help="the processors of each (default: 1)", type=int, default=1, metavar="N"),
            arg("--kernel", help="boot this kernel, not the disk's boot loader", default="", metavar="FILE"),
            arg("--initrd", help="the initial RAM disk for --kernel", default="", metavar="FILE"),
            arg("--cmdline", help="the command line for --kernel", default="", metavar="TEXT"),
            arg("--bridge", help="a bridge of each host, not a network of its own", default="", metavar="BRIDGE"),
            arg("--hypervisor", help="what runs them (default: the inventory's)", default="", metavar="NAME"),
            arg("--set", help="change a key of each: cpu=max", action="append", default=[], metavar="KEY=VALUE"),
            arg(
                "--identity",
                help="how clones are told apart: auto as the image allows, or cloud-init, or none",
                choices=("auto", "cloud-init", "none"),
                default="auto",
            ),
            arg("--ttl", help="how long it lives, for fleet sweep: 30m, 2h, 1d", default="", metavar="TIME"),
            _START,
        ),
    ),
    Command("fleet", "list", "list fleets", "fleet:list_", ()),
    Command("fleet", "show", "show a fleet, and what each member is doing", "fleet:show", (A_FLEET,)),
    Command("fleet", "start", "start members", "fleet:start", (A_FLEET, MEMBERS)),
    Command(
        "fleet",
        "stop",
        "shut members down",
        "fleet:stop",
        (
            A_FLEET,
            MEMBERS,
            arg("--force", help="take their power away", action="store_true"),
            arg("--timeout", help="seconds to wait (default: 60)", type=float, default=60.0, metavar="N"),
        ),
    ),
    Command(
        "fleet",
        "reset",
        "give members new clones of the image: all that they wrote is lost, and who they are stays",
        "fleet:reset",
        (A_FLEET, SOME_MEMBERS, _ALL),
    ),
    Command(
        "fleet",
        "replace",
        "put new machines in the place of members, with new keys",
        "fleet:replace",
        (A_FLEET, SOME_MEMBERS, _ALL, _START),
    ),
    Command("fleet", "wait", "wait until members let ssh in", "fleet:wait", (A_FLEET, MEMBERS, _TIMEOUT)),
    Command(
        "fleet",
        "run",
        "run a command in members, at the same time; the worst exit status is this command's",
        "fleet:run",
        (
            A_FLEET,
            arg("--on", help="some of its members (default: all)", action="append", default=[], dest="members",
                metavar="MEMBER", complete="guests"),
            arg("--timeout", help="seconds that it may take (default: 600)", type=float, default=600.0, metavar="N"),
            arg("words", help="the command, after --", nargs="*", metavar="COMMAND"),
        ),
    ),
    Command(
        "fleet",
        "ssh",
        "open a shell in a member, or run a command there",
        "fleet:ssh",
        (
            arg("member", help="the member", metavar="MEMBER", complete="guests"),
            arg("words", help="the command", nargs="*", metavar="COMMAND"),
        ),
    ),
    Command(
        "fleet", "console", "put a member's serial console on this terminal; Ctrl-] leaves it", "fleet:console",
        (arg("member", help="the member", metavar="MEMBER", complete="guests"),),
    ),
    Command(
        "fleet",
        "inventory",
        "print how to get into its members: for Ansible, or for ssh",
        "fleet:inventory",
        (A_FLEET, arg("--ssh", help="as ssh_config(5) has it", action="store_true")),
    ),
    Command("fleet", "destroy", "end a fleet: its members, their disks and keys", "fleet:destroy", (A_FLEET,)),
    Command("fleet", "sweep", "destroy the fleets whose time is over (--ttl)", "fleet:sweep", ()),
)  # fmt: skip
