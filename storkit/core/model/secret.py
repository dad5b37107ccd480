"""What never shows."""

from __future__ import annotations

from typing import Annotated

from storkit.core.identities import Check, Word, check_secret


class Secret:
    """A string that prints as stars. It travels on stdin or in 0600 files only, never in argv, logs or journals."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def reveal(self) -> str:
        """The secret itself: only for a pipe or a 0600 file."""
        return self._value


Secrets = dict[Word, Secret] | None
"""Secrets by their names."""
SecretLine = Annotated[Secret, Check(check_secret)]
"""A secret that is a line of a file."""
