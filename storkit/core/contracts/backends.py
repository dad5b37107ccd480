"""What every backend can be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from storkit.core.model import (
    Finding,
)

if TYPE_CHECKING:
    pass


class BackendVerbs(ABC):
    """What pools, transports and hypervisors can all be asked."""

    @abstractmethod
    def ready(self, serves: bool = False, attaches: bool = False) -> list[Finding]:
        """Look for what keeps this host from its part, beyond what the backend `needs`; for `host check`.

        Args:
            serves: of a transport: this host has volumes that go by it.
            attaches: of a transport: hosts on other machines have such volumes.
        """
