"""What an agent of version 0.1.0 is sent: nothing that it does not know, and nothing that it would get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from storkit.core import calls, codec
from storkit.core.errors import Unsupported
from storkit.core.model import Client, Volume, VolumeHold
from storkit.hosts.remote import wire

RECORDED = Path(__file__).parents[1] / "data/state-0.1.0/conversation.txt"
VERBS: dict[str, list[str]] = json.loads(RECORDED.with_name("verbs.json").read_text())
"""The verbs that 0.1.0 had of pools, transports and hypervisors, and the arguments of each."""
UUID = "cc18ff28-316c-43a9-9f2c-38e3cc63bc95"
VOLUME = Volume("v", UUID, 1 << 20, "p", "a", generation=7)
HOLD = VolumeHold(UUID, "g", UUID, 7, "2026-01-02T03:04:05Z", "a", "")


def known(argument: str) -> set[str]:
    """The keys that 0.1.0 gave a record of that argument itself."""
    asked = [json.loads(line[3:]) for line in RECORDED.read_text().splitlines() if line.startswith("-> ")]
    records = [line["args"][argument] for line in asked if argument in line.get("args", {})]
    return {key for each in records for record in (each if isinstance(each, list) else [each]) for key in record}


@pytest.mark.parametrize("verb", ["create", "clone", "delete", "export", "set_writers", "attach", "detach"])
def test_a_volume_has_the_keys_that_it_had(verb: str) -> None:
    volume = codec.dump(VOLUME)
    args: dict[str, Any] = {"volumes": [volume], "volume": volume, "source": volume}
    sent = wire.for_version_1(verb, args)
    assert all(set(record) <= known("volumes") for record in (*sent["volumes"], sent["volume"], sent["source"]))
    assert sent["volumes"][0]["uuid"] == UUID and volume["generation"] == 7


def test_a_client_has_the_keys_that_it_had() -> None:
    client = codec.dump(Client("b", False, "192.0.2.7", "192.0.2.7"))
    assert wire.for_version_1("export", {"clients": [client]})["clients"] == [
        {"name": "b", "same_machine": False, "address": "192.0.2.7"}
    ]


@pytest.mark.parametrize("name", VERBS)
def test_no_verb_has_an_argument_that_it_had_not(name: str) -> None:
    """0.1.0 refuses a call with one: a guest could not be moved to a host that is yet to be upgraded."""
    kind, verb = name.split(".")
    declared = calls.verb(kind, verb)
    assert declared is not None, "0.1.0 has it"
    sent = wire.for_version_1(verb, dict.fromkeys(declared.arguments, ""))
    assert sent.keys() == set(VERBS[name])


def test_an_address_named_source_stays() -> None:
    assert wire.for_version_1("import_image", {"source": "/srv/web.img"}) == {"source": "/srv/web.img"}


def test_a_volume_that_is_held_is_not_put_to_a_host_that_knows_no_hold() -> None:
    volume = codec.dump(Volume("v", UUID, 1 << 20, "p", "a", hold=HOLD))
    with pytest.raises(Unsupported, match="held for a sleeping guest"):
        wire.for_version_1("set_writers", {"volumes": [volume], "hosts": ["b"]})
