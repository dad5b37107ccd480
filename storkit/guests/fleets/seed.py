"""The seed disk of a member: an ISO 9660 image of the label `cidata`, from which cloud-init's data source NoCloud takes
who the machine is (cloud-init's documentation: NoCloud, "Source 2: drive with labeled filesystem")."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

LABEL = "cidata"
SIZE = 1 << 20
"""Bytes of the volume that takes one."""


def image(files: Mapping[str, str]) -> bytes:
    """An image that has these files in its root."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, content) in enumerate(files.items()):
        data = content.encode()
        iso.add_fp(BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    written = BytesIO()
    iso.write_fp(written)
    iso.close()
    return written.getvalue()
