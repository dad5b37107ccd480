"""Two machines with Debian's real Xen, beside the lab's other hosts and on their networks. See docs/lab.md.

Each is a QEMU process without KVM. They are booted once for each machine, and frozen: a test thaws them in seconds.
"""

from tests.lab.xen.dom0 import Dom0
from tests.lab.xen.lab import XenLab

__all__ = ["Dom0", "XenLab"]
