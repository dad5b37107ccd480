"""A volume that is attached, as qemu-img opens it: a device, a file, or an NBD export with its credentials."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from storkit.core.errors import Unsupported
from storkit.core.model import Attachment
from storkit.tech.images import qemuimg

_TLS = "storkit-tls"


@dataclass(frozen=True, slots=True)
class Opened:
    """A node of qemu-img's, and the words for the objects that it names."""

    node: str
    objects: list[str] = field(default_factory=list)


def opened(attachment: Attachment) -> Opened:
    """What an attachment's bytes are read from. Raises Unsupported: by nothing that is known here."""
    source = attachment.source
    if source.kind != "network":
        return Opened(qemuimg.node(source.format, source.path))
    if source.protocol != "nbd":
        message = f"volume {attachment.volume} is attached by {source.protocol}, which cannot be copied from"
        raise Unsupported(message, "name a pool of the same host")
    where: dict[str, Any] = {"type": "inet", "host": source.server, "port": str(source.port)}
    if source.socket:
        where = {"type": "unix", "path": source.socket}
    file: dict[str, Any] = {"driver": "nbd", "export": source.export, "server": where}
    objects = []
    if source.tls:
        file["tls-creds"] = _TLS
        directory = source.tls_dir.replace(",", ",,")
        said = f"tls-creds-{source.tls},id={_TLS},endpoint=client,dir={directory}"
        said += ",verify-peer=on" if source.tls == "x509" else ""
        said += f",username={source.tls_user.replace(',', ',,')}" if source.tls == "psk" and source.tls_user else ""
        objects = ["--object", said]
    return Opened(f"json:{json.dumps({'driver': source.format, 'file': file})}", objects)
