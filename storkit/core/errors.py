"""Errors: one line of what happened, one line of what to do next.

The library raises; only the command line prints and exits. Each kind has its own exit code (docs/exit-codes.md), and
travels between hosts as JSON without losing its kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

NOTHING_CHANGED = "nothing was changed"
PUT_BACK = "everything was put back"


class StorkitError(Exception):
    """Something storkit can explain.

    `message` says what happened; `hint` is the next command to type, or the next thing to do.
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.said_by = ""
        """The host whose words message and hint are; empty: they are this storkit's own."""
        self.left = ""
        """What a failed command has left, where it is known: that nothing was changed, or that all was put back."""

    @property
    def each(self) -> list[StorkitError]:
        """The single problems that this error stands for."""
        return [self]

    @property
    def advice(self) -> str:
        """The hint, marked where it is another host's: to be quoted in a hint of our own."""
        return f"(host {self.said_by} says) {self.hint}" if self.hint and self.said_by else self.hint

    def to_json(self) -> dict[str, Any]:
        said = {"said_by": self.said_by} if self.said_by else {}
        return {"kind": self.kind, "message": self.message, "hint": self.hint, **said}


class UsageError(StorkitError):
    """The request itself is wrong: a bad name, size, option or file."""

    exit_code = 2
    kind = "usage"


class Unsupported(StorkitError):
    """This host, backend or format cannot do it: a missing tool, module or feature."""

    exit_code = 3
    kind = "unsupported"


class NotFound(StorkitError):
    """No volume, guest, host, pool or plan has that name."""

    exit_code = 4
    kind = "not-found"


class Conflict(StorkitError):
    """It exists already, is in use, is locked by another command, or there is no room for it; a pool that may hold it
    cannot be looked at."""

    exit_code = 5
    kind = "conflict"


class CommandFailed(StorkitError):
    """An external program failed; `stderr` is whole."""

    exit_code = 6
    kind = "command-failed"

    def __init__(self, argv: Sequence[str], status: int, stderr: str = "", *, host: str = "", hint: str = "") -> None:
        self.argv = [str(word) for word in argv]
        self.status = status
        self.stderr = stderr.strip()
        self.host = host
        last = self.stderr.splitlines()[-1].strip() if self.stderr else "no message"
        where = f" on {host}" if host else ""
        super().__init__(f"{self.argv[0]}{where} failed with status {status}: {last}", hint)

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "argv": self.argv,
            "status": self.status,
            "stderr": self.stderr,
            "host": self.host,
        }


class HostUnreachable(StorkitError):
    """No connection to a host, or no proper answer of its agent in time: it is unknown, neither healthy nor free."""

    exit_code = 7
    kind = "host-unreachable"

    def __init__(self, message: str, hint: str = "", *, host: str = "") -> None:
        super().__init__(message, hint)
        self.host = host
        """The host, where it is one of the inventory that was talked to."""


class TimedOut(StorkitError):
    """An event did not come before its deadline."""

    exit_code = 8
    kind = "timed-out"


class Unsafe(StorkitError):
    """Going on would break a promise: two writers, the wrong disk, or a record that cannot be trusted."""

    exit_code = 9
    kind = "unsafe"


class ServiceUnreachable(StorkitError):
    """A server, a disk or a port does not answer, though the host that was asked to use it does."""

    exit_code = 11
    kind = "service-unreachable"


class StepFailed(StorkitError):
    """A step of a plan failed; the hint names the command that resumes it or rolls it back."""

    exit_code = 10
    kind = "step-failed"

    def __init__(self, message: str, hint: str = "", *, plan: str = "", cause: StorkitError | None = None) -> None:
        super().__init__(message, hint)
        self.plan = plan
        self.cause = cause

    def to_json(self) -> dict[str, Any]:
        cause = self.cause.to_json() if self.cause else None
        return {**super().to_json(), "plan": self.plan, "cause": cause}


class NotAllowed(StorkitError):
    """The host does not let this key do it: by the key's grade, or by the file of what the host accepts."""

    exit_code = 12
    kind = "not-allowed"


class Interrupted(StorkitError):
    """Ctrl-C or a signal stopped the command in the middle of a plan; the hint names the command that goes on."""

    exit_code = 130
    kind = "interrupted"


class Problems(StorkitError):
    """Everything that is wrong with a request, or that went wrong in it, at once.

    Its exit code is that of its problems where they agree, otherwise the first one's.
    """

    kind = "problems"

    def __init__(self, problems: Sequence[StorkitError]) -> None:
        self.problems = list(problems)
        said = "; ".join(problem.message for problem in self.problems)
        super().__init__(f"{len(self.problems)} problems: {said}", "")
        self.exit_code = self.problems[0].exit_code  # type: ignore[misc]

    @property
    def each(self) -> list[StorkitError]:
        return self.problems

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "problems": [problem.to_json() for problem in self.problems]}


def together(problems: Sequence[StorkitError]) -> StorkitError:
    """The one problem, or all of them as one error."""
    each = [single for problem in problems for single in problem.each]
    return problems[0] if len(problems) == 1 else Problems(each)


def in_a_line(error: StorkitError) -> str:
    """What an error says happened, all of its problems in one line."""
    return "; ".join(problem.message for problem in error.each)


def raise_problems(problems: Sequence[StorkitError]) -> None:
    """Raise nothing, the one problem, or all of them together."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)


@contextmanager
def collected(problems: list[StorkitError]) -> Iterator[None]:
    """Add what goes wrong inside to `problems`, and go on."""
    try:
        yield
    except StorkitError as error:
        problems.extend(error.each)


_KINDS: dict[str, type[StorkitError]] = {
    cls.kind: cls
    for cls in (UsageError, Unsupported, NotFound, Conflict, TimedOut, Unsafe, ServiceUnreachable, NotAllowed)
}
_KINDS[HostUnreachable.kind] = ServiceUnreachable
"""A host that answers is not unreachable, whatever it says: something that it wanted to reach is."""


def from_json(data: dict[str, Any], host: str = "") -> StorkitError:
    """The error that `host` reported, of the same kind as it was there; or one that was kept, whoever said it."""
    error = _of_kind(data, host)
    error.said_by = host or str(data.get("said_by", ""))
    # Those of several are marked each; a failed command's message is made of its parts, which are not marked.
    if (host and not isinstance(error, Problems)) or isinstance(error, CommandFailed):
        error.message = quoted(error.message, error.said_by)
        error.args = (error.message,)
    return error


def quoted(words: str, host: str) -> str:
    """What another host says, marked as its own words, wherever they are shown or quoted. Empty: it is this one."""
    return f"{host}: {words}" if host else words


def _of_kind(data: dict[str, Any], said_by: str) -> StorkitError:
    kind = data.get("kind")
    message, hint = str(data.get("message", "")), str(data.get("hint", ""))
    if kind == CommandFailed.kind:
        return CommandFailed(data["argv"], data["status"], data["stderr"], host=data["host"], hint=hint)
    if kind == Problems.kind:
        return Problems([from_json(problem, said_by) for problem in data["problems"]])
    if kind == StepFailed.kind:
        cause = from_json(data["cause"], said_by) if data.get("cause") else None
        return StepFailed(message, hint, plan=data.get("plan", ""), cause=cause)
    return _KINDS.get(str(kind), StorkitError)(message, hint)
