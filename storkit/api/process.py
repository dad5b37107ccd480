"""What concerns a process as a whole: to be an agent, to end early, to say what the system has refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storkit.core.errors import StorkitError


def serve(grade: str = "", file: Path | None = None, client: str = "") -> int:
    """Be the agent of this machine: serve one coordinator on standard input and output, or the hooks of the host
    `client`; the exit status."""
    from storkit.hosts.remote.agent import serve

    return serve(grade=grade, file=file, client=client)


def hang_up() -> None:
    """End the conversations with all hosts at once: this process is asked to end, and its threads wait for them."""
    if conversation := sys.modules.get("storkit.hosts.remote.conversation"):
        conversation.hang_up()


def explained(error: OSError, otherwise: Path) -> StorkitError | None:
    """What a system call's error says of the file system; None: it says nothing of one. `otherwise`: the path, where
    it names none."""
    from storkit.system import files

    if not error.filename and error.errno not in files.MEANINGS:
        return None
    return files.explain(error, files.place(error, otherwise))
