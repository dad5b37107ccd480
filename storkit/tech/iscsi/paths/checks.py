"""What `host check` says of the paths of a host's volumes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from storkit.core.backend import Site
from storkit.core.model import Finding
from storkit.system import modules
from storkit.system.block import multipath
from storkit.tech.iscsi.attach import IscsiAttachments
from storkit.tech.iscsi.names import IscsiSettings
from storkit.tech.iscsi.paths import watch


def findings(site: Site, settings: IscsiSettings, attachments: IscsiAttachments) -> Iterator[Finding]:
    several = attachments.of_several_paths()
    if several or len(settings.portals) > 1:
        for name in [name for name in multipath.MODULES if not modules.there(name)]:
            message = f"the kernel has no module {name}, which several portals need"
            yield Finding(message, "install the kernel's full set of modules (Debian: linux-image-amd64)")
    if not several or os.geteuid() != 0:
        return
    for each in attachments.look(several).attachments:
        hint = f"open the way to it; then: storkit attach {each.volume} --on {site.host}"
        for path in each.lost:
            message = f"volume {each.volume} has lost its path {path.portal}: {path.state}"
            yield Finding(message, hint, warning=True)
    if not watch.running(site):
        message = "nobody has lost paths of volumes used again on this host: the program for it has ended"
        yield Finding(message, f"storkit host restore {site.host}", warning=True)
