"""`storkit image ...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import NotFound, UsageError
from storkit.core.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace

    from storkit.api import ImageVersion

STANDARD = "-"


def list_(session: Session, options: Namespace) -> None:
    _show(session, session.site.images.listing())


def show(session: Session, options: Namespace) -> None:
    _show(session, session.site.images.show(options.name))


def verify(session: Session, options: Namespace) -> None:
    found = session.site.images.verify(options.name)
    how = "as it was sealed" if found.kept else "no checksum was kept to compare it with: storkit image seal"
    line = f"{found.image.name}: {found.checksum}, {how}"
    session.result({**_data(found.image), "found": found.checksum, "compared": found.kept}, output.shown(line))


def seal(session: Session, options: Namespace) -> None:
    image = session.site.images.seal(options.volume, options.image or "")
    session.result(_data(image), _line(image, "sealed"))


def build(session: Session, options: Namespace) -> None:
    from storkit.api import BuildWish

    if not (options.script or options.cloud_config):
        hint = f"storkit image build {options.name} --script FILE, or --cloud-config FILE"
        raise UsageError("nothing is to be done to the image", hint)
    if options.script == options.cloud_config == STANDARD:
        raise UsageError("standard input is one text, and cannot be both", "name a file for one of them")
    script, config = (_script(name) if name else "" for name in (options.script, options.cloud_config))
    wish = BuildWish(
        script, options.source, options.on, options.memory, options.vcpus, "", options.kernel,
        options.initrd, options.cmdline, options.set, options.timeout, options.keep, config,
    )  # fmt: skip
    built = session.site.images.build(options.name, wish)
    said = [output.lines_shown(built.output.rstrip("\n"))] if built.output.strip() else []
    session.result({**_data(built.image), "output": built.output}, "\n".join([*said, _line(built.image, "built")]))


def prune(session: Session, options: Namespace) -> None:
    gone = session.site.images.prune(options.name, options.keep)
    session.result({"image": options.name, "deleted": gone}, output.shown(f"deleted: {', '.join(gone) or 'none'}"))


def _script(name: str) -> str:
    try:
        return sys.stdin.read() if name == STANDARD else Path(name).read_text()
    except FileNotFoundError:
        raise NotFound(f"there is no file {name}", "name the script's file, or - for standard input") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name} cannot be read as a script: {error}", "check the file") from None


def _show(session: Session, images: list[ImageVersion]) -> None:
    rows = [
        (each.name, format_size(each.volume.size), each.volume.pool, each.volume.made, each.source or "-",
         len(each.clones), ", ".join(each.fleets) or "-", "sealed" if each.volume.checksum else "no checksum")
        for each in images
    ]  # fmt: skip
    header = ("NAME", "SIZE", "POOL", "MADE", "FROM", "CLONES", "FLEETS", "CHECKSUM")
    session.result([_data(each) for each in images], output.table(header, rows))


def _data(image: ImageVersion) -> dict[str, Any]:
    data: dict[str, Any] = codec.dump(image)
    return {**data, "name": image.name}


def _line(image: ImageVersion, what: str) -> str:
    volume = image.volume
    return output.shown(f"{image.name}: {what} (volume {volume.name}), {format_size(volume.size)}, {volume.checksum}")
