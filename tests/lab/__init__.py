"""Several hosts with real kernels on one machine, for tests and for a person who wants to try storkit.

Each host is a User-Mode Linux kernel run as an ordinary process, with its own disks and networks. See docs/lab.md.
"""

from tests.lab.errors import CommandFailed, LabError, Unsupported
from tests.lab.host import Host, Result
from tests.lab.lab import Lab

__all__ = ["CommandFailed", "Host", "Lab", "LabError", "Result", "Unsupported"]
