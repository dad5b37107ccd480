"""How long storkit waits for an answer that should come: every such time is `scaled`.

STORKIT_TIMEOUT_FACTOR in the environment makes all of them longer, on a machine that is slow or busy. It is each
machine's own: an agent takes that of the host where it runs. Times that a person chose, in the inventory or on the
command line, stay as they were said.
"""

from __future__ import annotations

import math
import os

from storkit.core.errors import UsageError

VARIABLE = "STORKIT_TIMEOUT_FACTOR"


def factor(text: str) -> float:
    """The factor that the variable says. Raises UsageError: no number from 0.1 to 1000."""
    try:
        number = float(text or 1)
    except ValueError:
        number = math.nan
    if not 0.1 <= number <= 1000:
        raise UsageError(f"{VARIABLE}={text}: not a number from 0.1 to 1000", f"unset {VARIABLE}")
    return number


def scaled(seconds: float) -> float:
    """Seconds to wait on this machine."""
    return seconds * factor(os.environ.get(VARIABLE, ""))
