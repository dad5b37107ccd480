"""Processes that have a volume's bytes open since before these were a volume: those of a guest that was adopted while
it ran.

RUN/earlier/UUID   a line for each: its pid, and when it started (field 22 of /proc/PID/stat, proc(5))

They write past every server and node of storkit's, and nobody can take that from them. So they count as what their host
itself writes: another host gets a right only while that host has one too. It ends with the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from storkit.core.identities import check_uuid
from storkit.core.model import Existing, Volume
from storkit.system import files, openers


def keep(run: Path, adopted: Iterable[tuple[Volume, Existing]]) -> None:
    """Note, of the processes that are said to have volumes open, those that do; `run` is the home host's Site.run."""
    said = [(volume, existing.processes) for volume, existing in adopted if existing.processes]
    opened = openers.find([volume.path for volume, _ in said])
    for volume, pids in said:
        lines: list[str] = []
        for pid in {each.pid for each in opened[volume.path]} & set(pids):
            with suppress(OSError):
                lines.append(f"{pid} {_started(pid)}\n")
        if lines:
            files.write_atomic(files.make_private(run / "earlier") / check_uuid(volume.uuid), "".join(lines))


def alive(run: Path, uuid: str) -> frozenset[int]:
    """The noted processes of a volume that have not ended."""
    found: set[int] = set()
    with suppress(FileNotFoundError):
        for line in (run / "earlier" / uuid).read_text().splitlines():
            pid, _, started = line.partition(" ")
            with suppress(OSError, ValueError):
                if _started(int(pid)) == started:
                    found.add(int(pid))
    return frozenset(found)


def forget(run: Path, uuids: Iterable[str]) -> None:
    """These are volumes no more."""
    for uuid in uuids:
        (run / "earlier" / check_uuid(uuid)).unlink(missing_ok=True)


def _started(pid: int) -> str:
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return text.rpartition(")")[2].split()[19]
