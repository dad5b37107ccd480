"""How soon silent connections are probed: lowered for servers elsewhere, never raised."""

from __future__ import annotations

from pathlib import Path

import pytest

from storkit.tech.nbd import keepalive


@pytest.mark.parametrize(
    ("servers", "seconds", "before", "after"),
    [
        ({"", "192.0.2.7"}, 30, "7200\n", "30\n"),
        ({"storage.example.net"}, 60, "7200\n", "60\n"),
        ({"2001:db8::7"}, 30, "10\n", "10\n"),
        ({"192.0.2.7"}, 0, "7200\n", "7200\n"),
        ({"", "127.0.0.2", "::1", "localhost"}, 30, "7200\n", "7200\n"),
        (set(), 30, "7200\n", "7200\n"),
    ],
)
def test_probes_come_soon_where_a_server_is_elsewhere(
    servers: set[str], seconds: int, before: str, after: str, tmp_path: Path
) -> None:
    setting = tmp_path / "tcp_keepalive_time"
    setting.write_text(before)
    keepalive.hasten(servers, seconds, setting)
    assert setting.read_text() == after


def test_a_setting_that_cannot_be_changed_stops_nothing(tmp_path: Path) -> None:
    keepalive.hasten({"192.0.2.7"}, 30, tmp_path / "none")
