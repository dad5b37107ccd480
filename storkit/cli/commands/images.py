"""Commands for golden images and their versions."""

from storkit.cli.commands.words import HOST, Command, arg

_IMAGE = {"metavar": "NAME[@N]", "complete": "volumes"}
_NAME = arg("name", help="the image; without @N its newest version", **_IMAGE)
COMMANDS = (
    Command("image", "list", "list golden images, their versions, and who uses them", "image:list_", ()),
    Command(
        "image",
        "show",
        "show the versions of an image, or one of them",
        "image:show",
        (arg("name", help="the image; without @N all of its versions", **_IMAGE),),
    ),
    Command("image", "verify", "read all of a version, and compare it with its checksum", "image:verify", (_NAME,)),
    Command(
        "image",
        "seal",
        "make a volume a golden image that nobody writes any more, and keep its checksum",
        "image:seal",
        (
            arg("volume", help="the volume", metavar="VOLUME", complete="volumes"),
            arg("image", help="leave it, and make a copy the next version of this image", nargs="?", metavar="NAME"),
        ),
    ),
    Command(
        "image",
        "build",
        "boot a clone of an image, change it by a script or cloud-init, and make that the next version",
        "image:build",
        (
            arg("name", help="the image that gets another version", metavar="NAME"),
            arg("--script", help="the file of the script; - is standard input", default="", metavar="FILE"),
            arg("--cloud-config", help="what cloud-init is to do in it, before the script; - is standard input",
                default="", metavar="FILE"),
            arg("--from", help="what it is made from (default: the newest version of NAME)", default="", dest="source",
                **_IMAGE),
            arg("--on", help="the host that boots it (default: the image's)", default="", **HOST),
            arg("--memory", help="its memory (default: 512MiB)", default="512MiB", metavar="SIZE"),
            arg("--vcpus", help="its processors (default: 1)", type=int, default=1, metavar="N"),
            arg("--kernel", help="boot this kernel, not the disk's boot loader", default="", metavar="FILE"),
            arg("--initrd", help="the initial RAM disk for --kernel", default="", metavar="FILE"),
            arg("--cmdline", help="the command line for --kernel", default="", metavar="TEXT"),
            arg("--set", help="change a key of its record: cpu=max", action="append", default=[], metavar="KEY=VALUE"),
            arg("--timeout", help="seconds that the boot and the script may take (default: %(default)s)", type=float,
                default=1800.0, metavar="N"),
            arg("--keep", help="leave the clone as it is where the script fails", action="store_true"),
        ),
    ),
    Command(
        "image",
        "prune",
        "delete old versions of an image that nobody uses",
        "image:prune",
        (
            arg("name", help="the image", metavar="NAME", complete="volumes"),
            arg("--keep", help="the newest N stay (default: %(default)s)", type=int, default=1, metavar="N"),
        ),
    ),
)  # fmt: skip
