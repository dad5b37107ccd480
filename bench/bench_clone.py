"""1,000 clones of a golden image, their metadata and durability included, against a shell loop on the same disk.

    python bench/bench_clone.py [COUNT] [DIRECTORY]

The image is 2 GiB large with 300 MiB of data. As root, with xfsprogs, it runs on a fresh ext4 (overlays) and a fresh
XFS (reflinks) in files of DIRECTORY, otherwise in DIRECTORY itself. Each storkit row is one call in process (names
checked, headers, sidecars, flush); each shell row is a `for` loop of what a user would type, with and without the flush
that makes it durable. Long loops are measured for fewer clones, which the table states, and scaled.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from storkit.core.backend import Site
from storkit.core.model import Volume
from storkit.directory import Directory, DirectorySettings

SIZE, DATA = 2 << 30, 300 << 20


def shell(script: str, cwd: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["bash", "-c", f"set -e; {script}"], cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def timed(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def golden(pool: Directory) -> Volume:
    (volume,) = pool.create([Volume("golden", str(uuid.uuid4()), SIZE)])
    writes = [f"write -q -P {1 + n % 250} {n * 4}M 4M" for n in range(DATA >> 22)]
    commands = [word for write in writes for word in ("-c", write)]
    subprocess.run(["qemu-io", "-f", volume.format, *commands, volume.path], check=True)
    return pool.relabel([replace(volume, kind="image", made="imported")])[0]


def measure(place: Path, format: str, count: int, loops: list[tuple[str, str, int]]) -> None:
    """`loops`: what it is called, the body of the loop for clone $i, and how many to measure."""
    site = Site("local", place / "state", place / "run", place / "dev")
    path = place / "pool"
    path.mkdir()
    pool = Directory(site, DirectorySettings(path=str(path), format=format))  # type: ignore[arg-type]
    image = golden(pool)
    os.sync()
    # Each round makes new names: ext4 may search long for an inode right after many were freed.
    rounds = [
        [Volume(f"{batch}{number}", str(uuid.uuid4()), SIZE) for number in range(count)] for batch in ("a", "b", "c")
    ]
    took_by_round = []
    for volumes in rounds:
        os.sync()
        took_by_round.append(timed(lambda volumes=volumes: pool.clone(image, volumes)))  # type: ignore[misc]
    best = min(took_by_round)
    pool.delete([volume for volumes in rounds[:2] for volume in volumes])
    made = pool.find(["c0"])[0].made
    before = [volume.uuid for volume in pool.find()]
    finds = min(timed(pool.find) for _ in range(5))
    lists = min(shell("ls -l", path) for _ in range(5))
    print(f"\n{file_system(place)}, pool of {format}, {count} clones by {made}")
    rounds_text = ", ".join(f"{took:.2f}" for took in took_by_round)
    line(f"storkit clone, in one call (best of {rounds_text})", best, best)
    for turn, (title, body, wanted) in enumerate(loops):
        loop_path = place / f"loop{turn}"
        loop_path.mkdir()
        os.link(image.path, loop_path / "golden")
        number = min(wanted, count)
        os.sync()
        flush = "sync -f ." if "durable" in title else "true"
        took = shell(f"for i in $(seq {number}); do {body}; done; {flush}", loop_path) * count / number
        line(title + (f" ({number} measured)" if number < count else ""), took, best)
    print(
        f"  storkit find of {len(before)} volumes {finds * 1000:.0f} ms; `ls -l` of the directory {lists * 1000:.0f} ms"
    )
    print(f"  storkit delete of {count}: {timed(lambda: pool.delete(volumes)) * 1000:.0f} ms")


def line(title: str, seconds: float, base: float) -> None:
    print(f"  {title:<62}{seconds:9.3f} s {seconds / base:9.1f} x")


def file_system(path: Path) -> str:
    argv = ["findmnt", "-n", "-o", "FSTYPE", "-T", str(path)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def fresh(kind: str, base: Path) -> Iterator[Path]:
    """A new file system on a loop device, so that what was on the disk before has no say."""
    image, place = base / f"{kind}.image", base / kind
    image.touch()
    os.truncate(image, 16 << 30)
    place.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        image.unlink()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    base = Path(tempfile.mkdtemp(prefix="bench-clone-", dir=sys.argv[2] if len(sys.argv) > 2 else None))
    overlay = "qemu-img create -q -f qcow2 -F qcow2 -b golden c$i"
    overlays = [
        ("for i: qemu-img create -b", overlay, count),
        ("for i: qemu-img create -b, then sync: durable", overlay, count),
        ("for i: cp --sparse=always", "cp --sparse=always golden c$i", 5),
    ]
    reflink = "cp --reflink=always golden c$i"
    reflinks = [
        ("for i: cp --reflink=always", reflink, count),
        ("for i: cp --reflink=always, then sync: durable", reflink, count),
        *overlays[1:2],
    ]
    try:
        if os.geteuid() == 0 and shutil.which("mkfs.xfs"):
            with fresh("ext4", base) as place:
                measure(place, "qcow2", count, overlays)
            with fresh("xfs", base) as place:
                measure(place, "qcow2", count, reflinks)
        else:
            print("no fresh ext4 and XFS: that wants root and xfsprogs")
            (base / "here").mkdir()
            measure(base / "here", "qcow2", count, overlays)
    finally:
        shutil.rmtree(base)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\nlargest memory of this process: {own / 1024:.0f} MiB (max RSS)")


if __name__ == "__main__":
    main()
