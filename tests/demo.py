"""`make demo`: a real Linux guest moves live from host a to host b and back, while it writes to its root disk.

Both hosts are directories of this machine; everything else is real: QEMU, the guest's kernel and file system, the
storage server that decides who may write, the proof that both hosts see one disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.guestkit import linux, log

ROOT = Path(__file__).resolve().parent.parent
BETWEEN = 50
"""Writes of the guest between one act and the next."""

INVENTORY = """\
[hosts.a]
url = "local:a"
[hosts.b]
url = "local:b"
[pools.default]
host = "a"
format = "qcow2"
"""


class Demo:
    """One run, in a directory that is gone when it ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.began = time.monotonic()
        self.timeline: list[str] = []
        (directory / "inventory.toml").write_text(INVENTORY)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.2f} s  {text}", flush=True)

    def storkit(self, *words: str, quiet: bool = False) -> Any:
        """Run a command as a person would, showing it; its result, and the steps it took."""
        options = ["--inventory", str(self.directory / "inventory.toml"), "--state", str(self.directory / "plans")]
        if not quiet:
            self.say("$ storkit " + " ".join(word.replace(str(self.directory), "DIR") for word in words))
        done = subprocess.run(
            [sys.executable, "-m", "storkit", *options, "--json", "-v", *words],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        for line in done.stderr.splitlines():
            if not quiet and line.startswith(" "):
                print(f"             {line}")
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise SystemExit(f"demo: storkit {' '.join(words)} ended with {done.returncode}")
        return json.loads(done.stdout) if done.stdout else None


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="storkit-demo-") as scratch:
        demo = Demo(Path(scratch))
        try:
            return play(demo)
        finally:
            end_all(scratch)


def play(demo: Demo) -> int:
    demo.say("build the guest: Debian's cloud kernel, busybox, an ext4 root disk (kept for the next time)")
    kit = linux.build()
    console = demo.directory / "console.log"
    demo.storkit("volume", "import", str(kit.root), "golden", "--golden")
    clone = demo.storkit("volume", "clone", "golden", "web")[0]
    demo.say(f"cloned by {clone['made']}: {os.stat(clone['path']).st_blocks // 2} KiB allocated for a disk of "
             f"{clone['size'] >> 20} MiB")  # fmt: skip
    demo.storkit(
        "guest", "define", "web", "--disk", "web", "--memory", "112MiB", "--machine", "pc", "--kernel", str(kit.kernel),
        "--initrd", str(kit.initrd), "--cmdline", linux.CMDLINE, "--console", str(console),
    )  # fmt: skip
    moves = []
    with log.Watch(console) as watch:
        demo.storkit("guest", "start", "web", "--on", "a")
        watch.wait_for(BETWEEN)
        demo.say(f"the guest is up and has written {watch.last} numbered lines to its root disk, each fsynced")
        for source, destination in (("a", "b"), ("b", "a")):
            watch.longest_gap_ms = 0.0
            before = watch.last
            result = demo.storkit("migrate", "run", "web", "--to", destination)
            watch.wait_for_more(BETWEEN)
            proof, moved = result["proof"][0], result["migration"]
            demo.say(f"proof: {' and '.join(proof['hosts'])} see {proof['identity']}, {proof['blocks']} blocks alike")
            moves.append((source, destination, moved, watch.longest_gap_ms, before, watch.last))
        demo.storkit("guest", "stop", "web")
        numbers = watch.last
    report = log.verify(Path(clone["path"]), clone["format"])
    print()
    print("  move    total    QEMU's downtime   longest wait between two writes   lines written")
    for source, destination, moved, gap, before, after in moves:
        print(f"  {source} -> {destination}  {moved['total_ms']:4} ms  {moved['downtime_ms']:15} ms  {gap:30.0f} ms   "
              f"{before} ... {after}")  # fmt: skip
    print()
    print(f"  {report.count} lines on the disk, the last one {report.last} (the console's last was {numbers})")
    print(f"  missing {len(report.gaps)}, twice {len(report.repeated)}, torn {len(report.torn)}; "
          f"file system {'clean' if not report.filesystem else report.filesystem}; "
          f"longest write {report.longest_stall_ms:.0f} ms by the guest's own clock")  # fmt: skip
    demo.storkit("guest", "delete", "web", quiet=True)
    demo.storkit("volume", "delete", "web", "golden", quiet=True)
    whole = report.clean and report.first == 1 and report.last >= numbers
    print(f"\n  {'nothing was lost' if whole else 'SOMETHING IS WRONG'}")
    return 0 if whole else 1


def end_all(directory: str) -> None:
    """End what an interrupted demo left running, by its own pid."""
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if directory.encode() in line and b"qemu" in line:
            os.kill(int(entry.name), 9)


if __name__ == "__main__":
    sys.exit(main())
