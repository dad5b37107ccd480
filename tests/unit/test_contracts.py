"""The contracts: what a backend has of them, what an agent accepts, and what a proxy asks for."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storkit import images, plans
from storkit.core import calls, registry
from storkit.core.backend import Backend, Hypervisor, Pool, Transport
from storkit.core.contracts.transports import TransportVerbs
from storkit.core.errors import Unsupported, UsageError
from storkit.core.inventory import HostConfig, Inventory, PoolConfig
from storkit.core.model import Credential, Offer, Secret, Volume
from storkit.directory import Directory
from storkit.hosts import declared
from storkit.hosts.connections import Connections
from storkit.hosts.setup import PoolSettings, Setup
from storkit.hosts.site import Performer, site
from storkit.plans import verbs

KINDS: dict[str, tuple[type[Any], Callable[[str], type[Backend]]]] = {
    "pool": (Pool, registry.pool),
    "transport": (Transport, registry.transport),
    "hypervisor": (Hypervisor, registry.hypervisor),
}
MODULES = {"images": images, "host": declared}
BACKENDS = [(kind, find(name)) for kind, (base, find) in KINDS.items() for name in registry.names(base)]


def parameters(function: Any, without: str) -> dict[str, Any]:
    """The names of a function's parameters, with their defaults."""
    found = inspect.signature(function).parameters.items()
    return {name: each.default for name, each in found if name != without}


def declared_by(kind: str, verb: str) -> dict[str, Any]:
    return parameters(getattr(calls.CONTRACTS[kind], verb), "self")


def test_a_contract_is_its_verbs_and_nothing_else() -> None:
    assert sum(len(calls.verbs(kind)) for kind in calls.CONTRACTS) > 40
    for kind, contract in calls.CONTRACTS.items():
        public = {name for name in dir(contract) if not name.startswith("_") and name != "register"}
        assert public == calls.verbs(kind)
        for name in public:
            verb = calls.verb(kind, name)
            assert verb is not None and Any not in verb.arguments.values() and verb.result is not Any


@pytest.mark.parametrize(("kind", "cls"), BACKENDS, ids=lambda each: getattr(each, "__name__", each))
def test_a_backend_has_the_verbs_of_its_contract_with_the_same_arguments(kind: str, cls: type[Backend]) -> None:
    for verb in calls.verbs(kind):
        assert parameters(getattr(cls, verb), "self") == declared_by(kind, verb), verb


@pytest.mark.parametrize(("kind", "cls"), BACKENDS, ids=lambda each: getattr(each, "__name__", each))
def test_a_backend_shows_nothing_but_its_contract(kind: str, cls: type[Backend]) -> None:
    """Whoever adds a public method to a backend means a verb, and declares it; or a helper, and gives it a `_`."""
    functions = {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}
    assert functions <= calls.verbs(kind)


@pytest.mark.parametrize("kind", MODULES)
def test_the_verbs_that_are_functions_have_the_arguments_of_their_contract(kind: str) -> None:
    for verb in calls.verbs(kind):
        assert parameters(getattr(MODULES[kind], verb), "site") == declared_by(kind, verb), verb


class Helpful(Directory):
    """A pool with more public methods than its contract, and one with another argument."""

    def backdoor(self) -> list[Volume]:
        raise AssertionError("it was called")

    def find(self, names: list[str] | None = None, deep: bool = False) -> list[Volume]:
        raise AssertionError("it was called")


STRANGE = ["backdoor", "__init__", "_uncounted", "site", "settings", "__class__", "backend", "Settings", "", "find.x"]


@pytest.mark.parametrize("verb", STRANGE)
def test_an_agent_accepts_the_contract_and_nothing_else(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "pool", lambda name: Helpful)
    given = Setup("a", state=str(tmp_path), pools={"p": PoolSettings("directory")})
    performer = Performer(given, site(given))
    for target in ("pool:p", "transport:nbd", "hypervisor:qemu", "images", "host"):
        with pytest.raises(Unsupported, match=r"there is no verb .* of") as caught:
            performer.perform(target, verb, {})
        assert caught.value.hint == "upgrade storkit on host a"
    with pytest.raises(Unsupported, match="unknown argument 'deep'"):
        performer.perform("pool:p", "find", {"deep": True})


@pytest.mark.parametrize("target", ["", "agent", "pool", "shell:x", "images:x", "host:a", "pool:", "pool:q"])
def test_there_are_no_other_targets(target: str, tmp_path: Path) -> None:
    given = Setup("a", state=str(tmp_path), pools={"p": PoolSettings("directory")})
    for verb in ("find", "facts"):
        with pytest.raises(UsageError, match=r"no backend|no pool"):
            Performer(given, site(given)).perform(target, verb, {})


@pytest.mark.parametrize("kind", MODULES)
def test_functions_beside_the_verbs_of_a_module_are_refused(kind: str, tmp_path: Path) -> None:
    module = importlib.import_module(MODULES[kind].__name__)
    given = Setup("a", state=str(tmp_path))
    for name, _ in inspect.getmembers(module, callable):
        if name not in calls.verbs(kind):
            with pytest.raises(Unsupported, match="there is no verb"):
                Performer(given, site(given)).perform(kind, name, {})


# Proxies


def test_a_proxy_has_records_in_and_out(tmp_path: Path) -> None:
    config = HostConfig("a", f"local:{tmp_path}/a")
    connections = Connections(Inventory({"a": config}, {"p": PoolConfig("p", "a", "directory", {"format": "raw"})}))
    pool = connections.to("a").pool("pool:p")
    wanted = Volume("web", str(uuid.uuid4()), 1 << 20, "p", "a")
    (made,) = pool.create([wanted])
    assert isinstance(made, Volume) and made.uuid == wanted.uuid and made.path
    assert pool.find(["web"]) == [made] == pool.look().volumes
    assert pool.capacity().pool == "p"
    pool.delete([made])
    assert pool.find() == []


OFFER = Offer(
    "web", str(uuid.uuid4()), 512, "b", "nbd", "web", "x", False, credential=Credential("psk", "u", Secret("s"))
)


def test_a_proxy_asks_for_what_its_caller_has_said_and_no_more() -> None:
    """An argument that was left out is not sent: an older agent does not know it."""
    asked: list[tuple[str, str, dict[str, Any]]] = []

    def call(target: str, verb: str, args: dict[str, Any]) -> Any:
        asked.append((target, verb, args))
        return []

    transport = calls.proxy("transport", "transport:nbd", call)
    assert isinstance(transport, TransportVerbs)
    assert transport.find_exports() == [] and transport.find_exports(None) == []
    assert transport.attach([OFFER]) == []
    assert [args for _, _, args in asked[:2]] == [{}, {"volumes": None}]
    assert asked[2][:2] == ("transport:nbd", "attach")
    assert asked[2][2]["offers"][0]["credential"]["secret"] == "s", "secrets travel to where they are needed"
    with pytest.raises(TypeError):
        transport.find_exports(everything=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("said", [{}, [5], [None], "x"])
def test_a_proxy_refuses_a_result_that_its_contract_does_not_have(said: Any) -> None:
    transport = calls.proxy("transport", "transport:nbd", lambda *_: said)
    assert isinstance(transport, TransportVerbs)
    with pytest.raises(UsageError, match="find_exports of transport:nbd"):
        transport.find_exports()


def test_plans_ask_by_proxies() -> None:
    """A call whose verb is a word is one that no type checker sees."""
    folder = Path(plans.__file__).parent
    calling = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if re.search(r"\.call\([^)]", path.read_text())
    }
    assert calling == {"steprun.py"}, "it adds what reports progress"


@pytest.mark.parametrize("name", verbs.VERBS)
def test_verbs_of_plans_are_typed(name: str) -> None:
    """Their arguments, what they see and what they give: `Any` would be a hole in the seam."""
    cls = verbs.VERBS[name]
    assert cls.verb == name
    hints = [*typing.get_type_hints(cls).items()]
    hints += [(method, typing.get_type_hints(getattr(cls, method))["return"]) for method in ("find", "act")]
    assert not [place for place, hint in hints if "Any" in str(hint)]
