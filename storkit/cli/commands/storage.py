"""Commands for pools, volumes and attachments."""

from storkit.cli.commands.words import A_POOL, A_VOLUME, FORMATS, HOST, IF_EXISTS, ON, POOL, VOLUME, Command, arg

COMMANDS = (
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
            arg("--if-missing", help="one of this name and size that is there is as good", action="store_true"),
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
                help="the image file on the pool's host; an https URL; - is standard input (./- a file of that name)",
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
        "restore",
        "set a volume back to what it was when a snapshot of it was made",
        "volume:restore",
        (
            A_VOLUME,
            arg("snapshot", help="the snapshot", metavar="SNAPSHOT", complete="volumes"),
            arg("--discard", help="do not keep what it is now as another snapshot", action="store_true"),
        ),
    ),
    Command(
        "volume",
        "move",
        "give a volume another pool, on the same host or on another",
        "volume:move",
        (
            A_VOLUME,
            arg("--to", help="the pool", required=True, metavar="POOL", complete="pools"),
            arg("--keep", help="leave a snapshot of it where it was", action="store_true"),
            arg("--rate", help="copy no more than this in a second: 50MiB", metavar="SIZE"),
        ),
    ),
    Command(
        "volume",
        "rename",
        "give a volume another name, also in the records of the guests that have it",
        "volume:rename",
        (A_VOLUME, arg("new", help="the new name", metavar="NEW")),
    ),
    Command(
        "volume",
        "resize",
        "give a volume another size",
        "volume:resize",
        (
            A_VOLUME,
            arg("size", help="the new size, as for create; +SIZE is that much more", metavar="SIZE"),
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
        "flatten",
        "let clones stand on no other volume, so that what they were cloned from can be deleted",
        "volume:flatten",
        (arg("names", help="the volumes", nargs="+", **VOLUME),),
    ),
    Command(
        "volume",
        "delete",
        "delete volumes",
        "volume:delete",
        (
            arg("names", help="the volumes", nargs="+", **VOLUME),
            arg("--force", help="also disks of guests that are defined", action="store_true"),
            IF_EXISTS,
        ),
    ),
    Command(
        "volume",
        "list",
        "list the volumes",
        "volume:list_",
        (
            POOL,
            arg(
                "--long", "-l", help="also what each takes, its origin, its guests; and the pools", action="store_true"
            ),
        ),
    ),
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
)
