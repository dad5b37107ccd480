"""A virsh for tests without a libvirtd: it keeps domains as files, UUID.xml below $FAKE_LIBVIRT, and runs none.

What it prints is in the forms of virsh 9.0 (tests/unit/data/virsh-9.0-*). Beside a domain's file may be UUID.running,
with what it runs with if that is something else, and UUID.saved for one with a managed save image.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "unit" / "data"
PLACE = Path(os.environ.get("FAKE_LIBVIRT", "/nonexistent"))


def domains() -> dict[str, str]:
    """UUID to name."""
    return {file.stem: ET.parse(file).getroot().findtext("name", "") for file in sorted(PLACE.glob("*.xml"))}


def mark(running: Path, definition: Path, words: list[str]) -> None:
    """The element of somebody's namespace in what a domain runs with, or no more."""
    text = running.read_text() or definition.read_text()
    text = re.sub(r"  <metadata>.*?</metadata>\n", "", text, flags=re.S)
    if "--set" in words:
        uri = words[words.index("--uri") + 1]
        inside = words[words.index("--set") + 1].replace("<guest>", f'<storkit:guest xmlns:storkit="{uri}">')
        inside = inside.replace("</guest>", "</storkit:guest>").replace("<volume ", "<storkit:volume ")
        text = text.replace("</uuid>\n", f"</uuid>\n  <metadata>\n    {inside}\n  </metadata>\n", 1)
    running.write_text(text)


def command(words: list[str]) -> int:
    verb, arguments = words[0], [word for word in words[1:] if not word.startswith("--")]
    found = domains()
    uuid = next((one for one in found if arguments and arguments[0] in (one, found[one])), "")
    if verb == "list":
        for one, name in found.items():
            if "--with-snapshot" in words:
                continue
            if "--with-managed-save" not in words:
                print(one, name)
            elif (PLACE / f"{one}.saved").exists():
                print(one)
    elif verb == "domstats":
        for one, name in found.items():
            state = 1 if (PLACE / f"{one}.running").exists() else 5
            print(f"Domain: '{name}'\n  state.state={state}\n  state.reason=1\n")
    elif verb == "domcapabilities":
        print((DATA / "virsh-9.0-domcapabilities.xml").read_text())
    elif verb == "capabilities":
        print("<capabilities><host/></capabilities>")
    elif verb == "define":
        text = Path(arguments[0]).read_text()
        own = ET.fromstring(text).findtext("uuid", "")
        made = PLACE / f"{own}.{os.getpid()}"  # others look meanwhile
        made.write_text(text)
        made.rename(PLACE / f"{own}.xml")
    elif not uuid:
        print(f"error: failed to get domain '{arguments[0]}'", file=sys.stderr)
        return 1
    elif verb == "dumpxml":
        running = PLACE / f"{uuid}.running"
        live = running.read_text() if running.exists() and "--inactive" not in words else ""
        print((live or (PLACE / f"{uuid}.xml").read_text()).strip() + "\n")
    elif verb == "metadata":
        mark(PLACE / f"{uuid}.running", PLACE / f"{uuid}.xml", words)
    elif verb == "undefine":
        (PLACE / f"{uuid}.xml").unlink()
    elif verb != "snapshot-list":
        print(f"error: unknown command: '{verb}'", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    words = sys.argv[1:]
    while words[0].startswith("-"):
        words = words[2:] if words[0] == "-c" else words[1:]
    with (PLACE / "calls").open("a") as calls:
        print(*words, file=calls)
    batch = words[0].split("; ") if len(words) == 1 else []
    return max(command(shlex.split(each)) for each in batch) if batch else command(words)


if __name__ == "__main__":
    sys.exit(main())
