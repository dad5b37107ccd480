"""Texts in the editor of whoever types the command."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storkit.core.errors import CommandFailed, StorkitError, UsageError


@contextmanager
def in_editor() -> Iterator[Callable[[dict[str, str]], dict[str, str]]]:
    """What has texts edited, by the names of files ($VISUAL, $EDITOR, or vi), and gives them back as they were left. If
    what is then done with them fails, the error says where they are: nothing that was typed is lost."""
    directory = Path(tempfile.mkdtemp(prefix="storkit-edit-"))

    def edited(texts: dict[str, str]) -> dict[str, str]:
        files = {name: directory / name for name in texts}
        for name, file in files.items():
            file.write_bytes(texts[name].encode())
        argv = [*shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"), *map(str, files.values())]
        try:
            status = subprocess.run(argv, check=False).returncode
        except OSError as error:
            message = f"the editor {argv[0]} cannot be started: {error.strerror}"
            raise UsageError(message, "set VISUAL or EDITOR to one that is there") from None
        if status:
            raise CommandFailed(argv, status, "the editor has failed", hint="nothing was taken over")
        try:
            return {name: file.read_bytes().decode() for name, file in files.items()}
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"what the editor left cannot be read: {error}", f"ls -l {directory}") from None

    try:
        yield edited
    except StorkitError as error:
        last = error.each[-1]
        last.hint = f"{last.hint + '; ' if last.hint else ''}what you have typed is in {directory}"
        raise
    shutil.rmtree(directory)
