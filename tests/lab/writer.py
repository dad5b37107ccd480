"""A process on a host that writes at an attachment's path, and tells how far it has come."""

from __future__ import annotations

from storkit.core.model import Attachment
from tests.lab.host import Host

WRITER = """
import mmap, os, sys, time
path, offset, progress, rest = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
disk = os.open(path, os.O_RDWR | os.O_DIRECT)
block, number, longest = mmap.mmap(-1, 4096), 0, 0.0
while True:
    number += 1
    block[:8] = number.to_bytes(8, "big")
    began = time.monotonic()
    try:
        os.pwrite(disk, block, offset)
        os.fsync(disk)
        longest = max(longest, time.monotonic() - began)
        line = f"{number} {longest:.1f}"
    except OSError as error:
        line = f"{number} failed {error.errno}"
    with open(progress + ".new", "w") as file:
        file.write(line)
    os.rename(progress + ".new", progress)
    if "failed" in line:
        break
    time.sleep(rest)  # storkit needs the host's one processor too
"""


class Writer:
    """A process on a host that counts up in one block of a disk, and rests so many seconds between two writes."""

    def __init__(self, host: Host, attachment: Attachment, offset: int = 0, rest: float = 0.02) -> None:
        self._host, self._file = host, f"/run/writer.{attachment.host}.{offset}"
        argv = ["/usr/bin/python3", "-c", WRITER, attachment.path, str(offset), self._file, str(rest)]
        self.command = host.spawn(argv)
        host.wait_for(lambda: self.written() > 0, "first write", 60)

    def _line(self) -> list[str]:
        return self._host.run(["cat", self._file], check=False).stdout.split()

    def written(self) -> int:
        """How many writes were acknowledged."""
        line = self._line()
        return int(line[0]) - ("failed" in line) if line else 0

    def longest(self) -> float:
        """How many seconds the longest write took."""
        return float(self._line()[1])

    def failed(self) -> bool:
        return "failed" in self._line()

    def assert_goes_on(self, deadline: float = 90) -> None:
        """Within 30 seconds the kernel asks again for what a connection took with it."""
        before = self.written()
        self._host.wait_for(lambda: self.failed() or self.written() > before + 2, "write after the outage", deadline)
        assert not self.failed(), self._line()

    def assert_stalls(self) -> int:
        """Nothing is written any more, and nothing has failed. The number of the last write."""
        last = -1

        def still() -> bool:
            nonlocal last
            before, last = last, self.written()
            return before == last

        self._host.wait_for(still, "standstill", 60, every=2)
        assert not self.failed()
        return last

    def kill(self) -> None:
        """End it, as soon as the kernel gives back what it waits for."""
        if self.command.running():
            self.command.kill(9)

    def stop(self) -> int:
        """End it. How many writes were acknowledged."""
        self.kill()
        self.command.wait(check=False)
        written = self.written()
        self._host.run(["rm", "-f", self._file, self._file + ".new"])
        return written
