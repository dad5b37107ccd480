"""Names on the wire, settings, and what was granted."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storkit.core.backend import Site
from storkit.core.errors import StorkitError, Unsafe, UsageError
from storkit.core.model import Offer, Volume
from storkit.tech.grants import GrantStore
from storkit.tech.iscsi import names as iscsi_names
from storkit.tech.iscsi.names import (
    PREFIX,
    Chapped,
    IscsiClientGrant,
    IscsiGrant,
    IscsiSettings,
    initiator_iqn,
    portal,
)

UUID = "0c9f3f0e-1111-2222-3333-444455556601"


def test_the_identity_is_what_the_kernel_makes_of_the_serial() -> None:
    # as read by INQUIRY from a LIO logical unit of Linux 6.1
    assert iscsi_names.naa("0c9f3f0e-1111-2222-3333-444455556666") == "60014050c9f3f0e11112222333344445"
    assert iscsi_names.identity(UUID.upper()) == f"naa.60014050c9f3f0e11112222333344445 serial.{UUID}"


@pytest.mark.parametrize("host", ["a", "web1.example.org", "10.0.0.1"])
def test_a_plain_host_name_is_in_its_iqn_as_it_is(host: str) -> None:
    assert initiator_iqn(PREFIX, host) == f"{PREFIX}:host.{host}"


@given(st.text(min_size=1), st.text(min_size=1))
def test_hosts_have_iqns_of_their_own(one: str, other: str) -> None:
    names = [initiator_iqn(PREFIX, host) for host in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    for name in names:
        assert re.fullmatch(r"iqn\.[a-z0-9.:-]+", name) and len(name) <= 223


@pytest.mark.parametrize(
    "text, address, port",
    [
        ("10.0.0.1", "10.0.0.1", 3260),
        ("san1.example.org:860", "san1.example.org", 860),
        ("[fd00::1]", "fd00::1", 3260),
        ("[fd00::1]:861", "fd00::1", 861),
    ],
)
def test_portals_are_read(text: str, address: str, port: int) -> None:
    assert portal(text) == (address, port)


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "fd00::1", "a b", "[10.0.0.1", ":3260"]
)
def test_what_is_no_portal_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no portal"):
        portal(text)


@pytest.mark.parametrize(
    "prefix", ["", "iqn.2026-11.org", "iqn.2026-13.org.x", "IQN.2026-11.org.x", "iqn.2026-11.org.x:A"]
)
def test_a_prefix_that_the_kernel_would_refuse_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="cannot begin an IQN"):
        IscsiSettings(prefix=prefix)


def test_all_that_is_wrong_with_the_settings_is_said_at_once() -> None:
    with pytest.raises(StorkitError) as raised:
        IscsiSettings(prefix="x", portals=["::1"], login_timeout=0, replacement_timeout=0)
    assert len(getattr(raised.value, "problems", [])) == 4


def site(path: Path) -> Site:
    return Site("s", path / "state", path / "run", path / "dev")


def test_grants_are_kept_with_their_secrets_for_root_alone(tmp_path: Path) -> None:
    grants = GrantStore(site(tmp_path), IscsiGrant)
    grant = IscsiGrant(
        Volume("web", UUID, 1 << 20), {"a": IscsiClientGrant(False, chap=Chapped("me"))}, ["a"], "iqn", PREFIX
    )
    grants.save([grant])
    assert grants.path(UUID).stat().st_mode & 0o777 == 0o600
    assert grants.find() == ([grant], []) == grants.find([UUID, UUID])
    assert grants.find([str(uuid4())]) == ([], [])
    secrets = grant.clients["a"].chap
    assert secrets is not None and secrets.secret != secrets.mutual_secret and len(secrets.secret.reveal()) == 32
    assert secrets.secret.reveal() not in repr(grant)
    assert grant.remote() == {f"{PREFIX}:host.a": True}
    grants.forget([UUID])
    assert grants.find() == ([], [])


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"volume": 1}'])
def test_a_damaged_grant_is_named(tmp_path: Path, text: str) -> None:
    grants = GrantStore(site(tmp_path), IscsiGrant)
    grants.path(UUID).parent.mkdir(parents=True)
    grants.path(UUID).write_text(text)
    found, problems = grants.find()
    assert found == [] and isinstance(problems[0], Unsafe) and str(grants.path(UUID)) in problems[0].message


def test_a_fenced_host_stays_fenced_until_it_is_let_in(tmp_path: Path) -> None:
    grants = GrantStore(site(tmp_path), IscsiGrant)
    grants.unfence("ssh://root@b:22")
    grants.fence("ssh://root@b:22")
    assert grants.fenced("ssh://root@b:22") and not grants.fenced("b")
    grants.unfence("ssh://root@b:22")
    assert not grants.fenced("ssh://root@b:22")


@pytest.mark.parametrize(
    "name",
    ["", "/etc", "../../etc", f"{PREFIX}:../{UUID}", f"/x:{UUID}", f"{PREFIX}/..:{UUID}", f"{PREFIX}:{UUID}:x",
     f":{UUID}", f"{PREFIX}:{UUID}\n",
     f"-x:{UUID}", f"{PREFIX}:00000000-0000-4000-8000-000000000000"],
)  # fmt: skip
def test_a_target_of_another_name_is_not_the_volumes(name: str) -> None:
    assert not iscsi_names.is_target(name, UUID)
    for prefix in (PREFIX, "iqn.2020-01.com.example:storage"):
        assert iscsi_names.is_target(iscsi_names.target_iqn(prefix, UUID), UUID)


LIES = [{"name": "/etc"}, {"name": f"{PREFIX}:../{UUID}"}, {"identity": "naa.1 serial.2"}]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_an_offer_of_another_target_is_refused_before_anything_is_made(tmp_path: Path, lie: dict[str, str]) -> None:
    from storkit.tech.iscsi.attach import IscsiAttachments

    good = {"name": iscsi_names.target_iqn(PREFIX, UUID), "identity": iscsi_names.identity(UUID)}
    wanted = {**good, **lie}
    offer = Offer("web", UUID, 1 << 20, "a", "iscsi", wanted["name"], wanted["identity"], False, portals=["192.0.2.1"])
    with pytest.raises(Unsafe, match="another target or disk"):
        IscsiAttachments(site(tmp_path), IscsiSettings()).attach([offer])
