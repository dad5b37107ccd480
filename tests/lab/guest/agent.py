"""Runs inside a host of the lab: takes commands as JSON lines from a serial line, answers on it. Standard library only.

A request is {"id", "do", ...}. It gets {"got"} at once, as the line holds no more than one request, and its answer
{"id", ...} later; commands run side by side. A command's output goes to files and only its own process is waited for,
so a daemon that it leaves behind delays nothing. A program in Python (`python`) runs in an interpreter that is kept for
the next one (interpreter.py).
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import tty
from typing import IO, Any

OWN = "/lab/own"  # seen by the test process too: large answers travel there
INLINE = 32768
UNSEEN = ("/run/lab", "/run/udev", "/opt/storkit", "/dev/pts", "/dev/fd", "/dev/char", "/dev/block", "/var/lib/dpkg")
"""Directories whose files make no difference to a test, or come and go; half of a host's files are dpkg's."""


class Agent:
    def __init__(self, line: int) -> None:
        self.line = line
        self.writing = threading.Lock()
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.idle: dict[str, list[subprocess.Popen[bytes]]] = {}
        """Interpreters that wait for a program, by their environments."""

    def answer(self, **fields: object) -> None:
        data = json.dumps(fields).encode() + b"\n"
        with self.writing:
            while data:
                data = data[os.write(self.line, data) :]

    def serve(self) -> None:
        self.answer(hello=os.uname().nodename)
        buffered = b""
        while received := os.read(self.line, 65536):
            buffered += received
            *requests, buffered = buffered.split(b"\n")
            for request in requests:
                self.answer(got=1)
                self.handle(json.loads(request))

    def handle(self, request: dict[str, Any]) -> None:
        id, do = request["id"], request["do"]
        if do == "run":
            threading.Thread(target=self.run, args=(id, request), daemon=True).start()
        elif do == "python":
            threading.Thread(target=self.python, args=(id, request), daemon=True).start()
        elif do == "file":
            with open(f"{OWN}/{request['file']}") as file:  # noqa: PTH123
                self.handle({"id": id, **json.load(file)})
        elif do == "rest":
            threading.Thread(target=self.rest, args=(id,), daemon=True).start()
        elif do == "kill":
            process = self.running.get(request["command"])
            if process:
                os.killpg(process.pid, request["signal"])
            self.answer(id=id)
        elif do == "state":
            threading.Thread(target=lambda: self.answer(id=id, state=state()), daemon=True).start()

    def run(self, id: int, request: dict[str, Any]) -> None:
        with tempfile.TemporaryFile(dir="/run/lab") as out, tempfile.TemporaryFile(dir="/run/lab") as err:
            try:
                stdin: Any = subprocess.DEVNULL
                if request["input"] is not None:
                    stdin = tempfile.TemporaryFile(dir="/run/lab")  # noqa: SIM115
                    stdin.write(request["input"].encode(errors="surrogateescape"))
                    stdin.seek(0)
                process = subprocess.Popen(
                    request["argv"], stdin=stdin, stdout=out, stderr=err, start_new_session=True,
                    env={**os.environ, **request.get("env", {})}, cwd=request.get("cwd") or "/root",
                )  # fmt: skip
            except OSError as error:
                self.answer(id=id, status=127, stdout="", stderr=f"{error}\n", timed_out=False)
                return
            self.running[id] = process
            timed_out = False
            try:
                process.wait(request["timeout"])
            except subprocess.TimeoutExpired:
                timed_out = True
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            del self.running[id]
            self.answer(id=id, status=process.returncode, stdout=self.text(out), stderr=self.text(err),
                        timed_out=timed_out)  # fmt: skip

    def python(self, id: int, request: dict[str, Any]) -> None:
        idle = self.idle.setdefault(json.dumps(request["env"]), [])
        try:
            process = idle.pop()
        except IndexError:
            process = interpreter(request["env"])
        assert process.stdin is not None and process.stdout is not None
        directory = "/run/lab"
        with tempfile.NamedTemporaryFile(dir=directory) as out, tempfile.NamedTemporaryFile(dir=directory) as err:
            asked = {"code": request["code"], "argv": request["argv"], "files": [out.name, err.name]}
            status, timed_out = b"", False
            with contextlib.suppress(BrokenPipeError):  # somebody has killed it
                process.stdin.write(json.dumps(asked).encode() + b"\n")
                timed_out = not select.select([process.stdout], [], [], request["timeout"])[0]
                status = b"" if timed_out else process.stdout.readline()
            if status and not idle:
                idle.append(process)
            else:
                if not status:
                    os.killpg(process.pid, signal.SIGKILL)
                ended(process)
            self.answer(id=id, status=int(status or process.returncode), stdout=self.text(out), stderr=self.text(err),
                        timed_out=timed_out)  # fmt: skip

    def rest(self, id: int) -> None:
        """End the idle interpreters."""
        for idle in self.idle.values():
            while idle:
                ended(idle.pop())
        self.answer(id=id)

    def text(self, file: IO[bytes]) -> object:
        file.seek(0)
        data = file.read()
        if len(data) <= INLINE or not os.path.isdir(OWN):  # noqa: PTH112
            return data.decode(errors="surrogateescape")
        with tempfile.NamedTemporaryFile(dir=OWN, delete=False) as large:
            large.write(data)
        return {"file": os.path.basename(large.name)}  # noqa: PTH119


def interpreter(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    argv = ["/usr/bin/python3", f"{os.path.dirname(os.path.abspath(__file__))}/interpreter.py"]  # noqa: PTH100, PTH120
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(
        argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=null, start_new_session=True, cwd="/root",
        env={**os.environ, **environment},
    )  # fmt: skip


def ended(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def state() -> dict[str, list[str]]:
    """Everything whose change makes a host unfit for the next test, as sorted lists of words a person can compare."""

    def lines(path: str) -> list[str]:
        with open(path) as file:  # noqa: PTH123
            return sorted(file.read().splitlines())

    def entries(path: str) -> list[str]:
        return sorted(os.listdir(path)) if os.path.isdir(path) else []  # noqa: PTH112, PTH208

    disks = []
    for name in entries("/sys/block"):
        with open(f"/sys/block/{name}/size") as size:  # noqa: PTH123
            disks.append(f"{name} {size.read().strip()}")
    networks = subprocess.run(["ip", "-brief", "addr"], capture_output=True, text=True).stdout.splitlines()
    return {
        "processes": processes(),
        "mounts": lines("/proc/self/mounts"),
        "disks": disks,
        "modules": sorted(line.split()[0] for line in lines("/proc/modules")),
        "networks": sorted(" ".join(line.split()) for line in networks),
        "sockets": sockets(),
        "configfs": sorted(at for at, _, _ in os.walk("/sys/kernel/config")),
        "sessions": entries("/sys/class/iscsi_session"),
        "files": files(),
    }


def processes() -> list[str]:
    found = []
    for pid in os.listdir("/proc"):  # noqa: PTH208
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                words = file.read().split(b"\0")
        except OSError:
            continue
        name = b" ".join(words).decode(errors="replace").strip()
        # udevd's workers, and what they are about to execute, come and go by themselves; interpreters are ours
        passing = ("systemd-udevd --daemon", "(udev-worker)", "(spawn)", "/interpreter.py")
        if pid.isdigit() and name and not name.endswith(passing):
            found.append(name)
    return sorted(found)


def sockets() -> list[str]:
    found = []
    for table in ("tcp", "udp"):
        with open(f"/proc/net/{table}") as file:  # noqa: PTH123
            for line in file.read().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state in ("0A", "07"):
                    found.append(f"{table} port {int(local.split(':')[1], 16)}")
    return sorted(found)


def files() -> list[str]:
    """Files of the places that tools write to, with what changes when they are written, renamed or replaced."""
    found = []
    for top in ("/etc", "/root", "/home", "/var", "/tmp", "/srv", "/opt", "/usr/local", "/run", "/dev"):
        for directory, below, names in os.walk(top):
            if directory.startswith(UNSEEN):
                below.clear()
                continue
            for name in names:
                path = f"{directory}/{name}"
                try:
                    info = os.lstat(path)
                except OSError:
                    continue
                written = (info.st_mtime_ns, info.st_ctime_ns) if top != "/dev" else ()
                found.append(f"{path} {info.st_mode:o} {info.st_size} {written}")
    return sorted(found)


def main() -> None:
    line = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
    if os.isatty(line):  # a port of a virtio-serial device is none
        tty.setraw(line)
    Agent(line).serve()


if __name__ == "__main__":
    main()
