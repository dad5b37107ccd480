"""Verbs as data, and as calls: what the contracts (storkit.core.contracts) say of each, and proxies that ask for it.

`verb` is all that an agent goes by: a verb that it does not give is refused, whatever methods a backend has.
A proxy is an object of a contract's class whose methods are calls: the caller has records in and out, checked by its
own type checker; on the wire are JSON values, checked by both sides.
"""

from __future__ import annotations

import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from storkit.core import codec
from storkit.core.contracts.hooks import HookVerbs
from storkit.core.contracts.hosts import AgentVerbs, ImageVerbs, WordVerbs
from storkit.core.contracts.hypervisors import HypervisorVerbs
from storkit.core.contracts.pools import PoolVerbs
from storkit.core.contracts.transports import TransportVerbs
from storkit.core.errors import StorkitError, Unsupported, UsageError, raise_problems

CONTRACTS: Final[Mapping[str, type]] = {
    "pool": PoolVerbs,
    "transport": TransportVerbs,
    "hypervisor": HypervisorVerbs,
    "images": ImageVerbs,
    "host": WordVerbs,
    "hook": HookVerbs,
    "agent": AgentVerbs,
}
"""The kind of a target (what stands before the colon) to its contract; `agent` is the host itself, and no target."""

Call = Callable[[str, str, dict[str, Any]], Any]
"""Have a target's verb carried out, with arguments and a result that are JSON values, secrets included."""


@dataclass(frozen=True, slots=True)
class WireVerb:
    """A verb as its contract declares it."""

    kind: str
    name: str
    arguments: Mapping[str, Any]
    """Name to type."""
    required: frozenset[str]
    """The arguments that have no default."""
    result: Any
    """The type of the result."""

    def read(self, args: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Arguments (JSON values) as what they are declared to be.

        Raises:
            StorkitError: every argument that is unknown, missing or wrong, together; `where` begins their messages.
        """
        problems: list[StorkitError] = []
        for name in args.keys() - self.arguments.keys():
            # Not left out, as a record's unknown key is: it changes what is done.
            problems.append(Unsupported(f"{where}: unknown argument {name!r}", "upgrade storkit on that host"))
        for name in sorted(self.required - args.keys()):
            problems.append(UsageError(f"{where}: argument {name!r} is missing"))
        values = {
            name: codec.convert(hint, args[name], where, name, problems, strict=False)
            for name, hint in self.arguments.items()
            if name in args
        }
        raise_problems(problems)
        return values


@cache
def verbs(kind: str) -> frozenset[str]:
    """The verbs of a kind of target; none: there is no such kind."""
    return frozenset(getattr(CONTRACTS.get(kind), "__abstractmethods__", ()))


@cache
def verb(kind: str, name: str) -> WireVerb | None:
    """What the contract says of a verb; None: it has no such verb."""
    if name not in verbs(kind):
        return None
    from storkit.core import guest  # contracts import it for types alone: most commands need no guests

    method = getattr(CONTRACTS[kind], name)
    hints = typing.get_type_hints(method, localns=vars(guest), include_extras=True)
    result = hints.pop("return")
    parameters = inspect.signature(method).parameters
    required = frozenset(name for name in hints if parameters[name].default is inspect.Parameter.empty)
    return WireVerb(kind, name, hints, required, result)


class Targets(ABC):
    """The targets of one host, each as a proxy. A target is named as in steps: `pool:NAME`, `transport:NAME`."""

    @abstractmethod
    def call(self, target: str, verb: str, args: dict[str, Any]) -> Any:
        """As `Call`."""

    def pool(self, target: str) -> PoolVerbs:
        return typing.cast(PoolVerbs, proxy("pool", target, self.call))

    def transport(self, target: str) -> TransportVerbs:
        return typing.cast(TransportVerbs, proxy("transport", target, self.call))

    def hypervisor(self, target: str) -> HypervisorVerbs:
        return typing.cast(HypervisorVerbs, proxy("hypervisor", target, self.call))

    @property
    def images(self) -> ImageVerbs:
        return typing.cast(ImageVerbs, proxy("images", "images", self.call))

    @property
    def word(self) -> WordVerbs:
        """What the host keeps of persons' words."""
        return typing.cast(WordVerbs, proxy("host", "host", self.call))


def hook(call: Call) -> HookVerbs:
    """What a hook may have done at a manager, as a proxy."""
    return typing.cast(HookVerbs, proxy("hook", "hook", call))


def agent(call: Call) -> AgentVerbs:
    """A host itself, as a proxy; the target is `agent` in every call."""
    return typing.cast(AgentVerbs, proxy("agent", "agent", call))


def proxy(kind: str, target: str, call: Call) -> object:
    """An object of the contract of `kind` that has its verbs carried out by `call`."""
    assert target.partition(":")[0] == kind, f"{target} is no {kind}"
    return proxy_class(kind)(target, call)


@cache
def proxy_class(kind: str) -> type:
    """The class of the proxies of a contract."""
    contract = CONTRACTS[kind]
    methods: dict[str, Any] = {name: _method(kind, name) for name in verbs(kind)}
    return type(f"{contract.__name__}Proxy", (contract,), {"__init__": _begin, **methods})


def _begin(self: Any, target: str, call: Call) -> None:
    self._target, self._call = target, call


def _method(kind: str, name: str) -> Callable[..., Any]:
    signature = inspect.signature(getattr(CONTRACTS[kind], name))

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        del given["self"]
        said = self._call(self._target, name, codec.dump(given, reveal=True))
        declared = verb(kind, name)
        assert declared is not None
        return codec.load(declared.result, said, f"{name} of {self._target}", strict=False)

    method.__name__ = name
    method.__doc__ = getattr(CONTRACTS[kind], name).__doc__
    return method
