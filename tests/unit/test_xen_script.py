"""block-storkit: what it calls, and what it tells xl."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from storkit import hooks

SCRIPT = Path(hooks.__file__).with_name("block-storkit.sh")
TOOL = """\
#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
sys.stdout.write(os.environ.get("SAYS", ""))
sys.exit(int(os.environ.get("STATUS", "0")) if "hook" in sys.argv else 0)
"""


@pytest.mark.parametrize(
    ("status", "says", "told"),
    [
        (0, "", ""),
        (5, "g1 is written by h1\nnext: $(reboot) `x` \"'\n", "g1 is written by h1 next: $(reboot) `x` \"'"),
        (1, "", "storkit hook xen add failed with status 1"),
        (124, "", "storkit hook xen add did not end within 37 seconds"),
        (1, "-x" * 3000, "-x" * 500),
    ],
)  # fmt: skip
def test_the_script_tells_xl_why(tmp_path: Path, status: int, says: str, told: str) -> None:
    for name in ("storkit", "xenstore-write", "logger"):
        tool = tmp_path / name
        tool.write_text(TOOL.format(python=sys.executable, log=str(tmp_path / f"{name}.log")))
        tool.chmod(0o755)
    text = SCRIPT.read_text().replace("PATH=/usr/local/sbin", f"PATH={tmp_path}:/usr/local/sbin")
    text = text.replace("@STORKIT@", "storkit -v").replace("@OPTIONS@", "--file /x")
    (tmp_path / "script").write_text(text)
    done = subprocess.run(
        ["/bin/sh", tmp_path / "script", "add"],
        env={"XENBUS_PATH": "backend/vbd/4/1", "STATUS": str(status), "SAYS": says}, capture_output=True, timeout=60,
    )  # fmt: skip
    assert json.loads((tmp_path / "storkit.log").read_text()) == ["-v", "hook", "xen", "--file", "/x", "--", "add"]
    assert done.returncode == bool(status)
    if status:
        words = json.loads((tmp_path / "xenstore-write.log").read_text())
        assert words == ["backend/vbd/4/1/hotplug-error", told, "backend/vbd/4/1/hotplug-status", "error"]
    else:
        assert not (tmp_path / "xenstore-write.log").exists()
