"""The `xen` fixture."""

from __future__ import annotations

import pytest

from tests.lab.errors import LabError, Unsupported
from tests.lab.lab import Lab
from tests.lab.plugin import lab, pytest_runtest_makereport
from tests.lab.xen import XenLab

__all__ = ["lab", "pytest_runtest_makereport", "xen"]
_XEN = pytest.StashKey[XenLab | LabError]()


@pytest.fixture
def xen(pytestconfig: pytest.Config, lab: Lab) -> XenLab:
    """Two dom0s, one Xen lab for the whole run: a test thaws them as it likes, and `lab` throws them away after it."""
    if _XEN not in pytestconfig.stash:
        reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
        try:
            opened = XenLab(lab, lambda text: reporter and reporter.write_line(f"lab: {text}"))
            pytestconfig.add_cleanup(opened.close)
            pytestconfig.stash[_XEN] = opened
        except LabError as error:
            pytestconfig.stash[_XEN] = error
    found = pytestconfig.stash[_XEN]
    if isinstance(found, Unsupported):
        pytest.skip(str(found))
    if isinstance(found, LabError):
        raise found
    return found
