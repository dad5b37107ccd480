"""Two machines by a real OpenSSH: one sshd on two loopback addresses, with a key pinned to `storkit agent`."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storkit.system.timeouts import VARIABLE, scaled
from tests.e2e.world import ROOT, World

ADDRESSES = {"a": "127.0.0.1", "b": "127.0.0.2"}

INVENTORY = """\
[hosts.a]
url = "ssh://{user}@127.0.0.1:{port}"
state = "{directory}/a"
[hosts.b]
url = "ssh://{user}@127.0.0.2:{port}"
state = "{directory}/b"
[pools.default]
host = "a"
format = "raw"
[hypervisors.qemu]
accel = "tcg"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def two_machines(directory: Path, options: str = "") -> Iterator[World]:
    """A world whose hosts are reached by ssh, and reach each other by TCP on their own addresses.

    `options` are those of the agent that the key is pinned to; `$3` in them is the address of the host.
    """
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    assert program, "openssh-server is not installed"
    port = free_port()
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)], check=True)
    python = shlex.quote(sys.executable)
    agent = f"cd / && export PYTHONPATH={shlex.quote(str(ROOT))} && set -- $SSH_CONNECTION && "
    agent += f"exec {python} -m storkit agent {options}".rstrip()
    public = (directory / "user.pub").read_text()
    (directory / "authorized").write_text(f'command="{agent}",restrict {public}')
    factor = os.environ.get(VARIABLE, "1")
    (directory / "sshd_config").write_text(
        "".join(f"ListenAddress {address}:{port}\n" for address in ADDRESSES.values())
        + f"HostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized\nStrictModes no\nUsePAM no\n"
        f"PidFile none\nSetEnv {VARIABLE}={factor}\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    (directory / "ssh_config").write_text(
        f"Host *\n  IdentityFile {directory}/user\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile {directory}/known\n  LogLevel ERROR\n"
    )
    binaries = directory / "bin"
    binaries.mkdir()
    wrapper = binaries / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {directory}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    server = subprocess.Popen(
        [program, "-D", "-e", "-f", str(directory / "sshd_config")],
        stderr=(directory / "sshd.log").open("w"),
    )
    user = os.environ.get("USER") or "root"
    world = World(directory, inventory=INVENTORY.format(user=user, port=port, directory=directory))
    world.environment["PATH"] = f"{binaries}:{os.environ['PATH']}"
    try:
        deadline = time.monotonic() + scaled(10)
        while True:
            try:
                socket.create_connection(("127.0.0.2", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, (directory / "sshd.log").read_text()
                assert time.monotonic() < deadline, "sshd does not listen"
        yield world
    finally:
        server.terminate()
        server.wait()
        world.clear()
