"""What a host answers, compared with what the contract says that the verb returns.

A record of a newer storkit may have fields that this one does not know: they are left out. What a record must have,
and the type of everything, is checked here, once, before anyone looks into it.
"""

from __future__ import annotations

from typing import Any

from storkit.core import calls, codec
from storkit.core.errors import StorkitError
from storkit.hosts.remote.wire import Malformed


def checked(target: str, verb: str, result: Any) -> Any:
    """The result of a verb as JSON values of the declared types. Raises Malformed."""
    declared = calls.verb(target.partition(":")[0], verb)
    if declared is None:
        raise Malformed(f"an answer to {verb} of {target}, which no contract has")
    if declared.result is type(None):
        if result is not None:
            raise Malformed(f"{verb} of {target} with a result, which it has not")
        return None
    return codec.dump(_converted(declared.result, result, f"{verb} of {target}"), reveal=True)


def _converted(wanted: Any, result: Any, where: str) -> Any:
    problems: list[StorkitError] = []
    try:
        value = codec.convert(wanted, result, where, "", problems, strict=False)
    except RecursionError:
        raise Malformed(f"{where}: nested too deep") from None
    if problems:
        raise Malformed(problems[0].message)
    return value
