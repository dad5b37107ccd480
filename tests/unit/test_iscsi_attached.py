"""What a client keeps of its iSCSI attachments: no target is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from storkit.core.backend import Site
from storkit.core.errors import Unsafe
from storkit.core.model import Volume
from storkit.tech.iscsi.attach import IscsiAttachments
from storkit.tech.iscsi.names import IscsiSettings

WEB = Volume("web", "68ef4ad6-1cb9-49f8-8773-a1a59a20d668", 1 << 20)


def test_a_right_is_not_taken_up_by_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    attachments = IscsiAttachments(Site("b", tmp_path / "state", tmp_path / "run", tmp_path / "dev"), IscsiSettings())
    attachments.claim([WEB], ["b"])  # it is not attached here
    record = tmp_path / "state/iscsi-attached" / f"{WEB.uuid}.json"
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    record.write_text("{")
    with pytest.raises(Unsafe, match="is damaged"):
        attachments.claim([WEB], ["b"])
