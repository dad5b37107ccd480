"""Many hosts behind a fake `ssh` on PATH, each a shell script that answers as `storkit agent` would: 200 cost little.

Host sN has pool pN with one volume vN, of 1 MiB. What is asked of it is answered from files that this module writes,
one for each verb; every connection and every request is logged. A host can also `hang` (it connects, and never says a
word), `refuse` (ssh fails), or `hang-at-find`.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SIZE = 1 << 20

SSH = """\
#!/bin/sh
# ssh [OPTIONS] -- HOST storkit agent
while [ "$1" != -- ]; do shift; done
host=$2
cd "{directory}/hosts/$host" || exit 255
echo "$host" >> "{directory}/connections"
how=well
[ -e how ] && read -r how < how
case $how in
    refuse) echo "ssh: connect to host $host port 22: Connection refused" >&2; exit 255;;
    hang) exec sleep 120;;
esac
read -r hello
echo '{{"hello": 1, "version": "0.1.0", "pid": '$$'}}'
while read -r line; do
    id=${{line#*\\"id\\": }}; id=${{id%%[,\\}}]*}}
    do=${{line#*\\"do\\": \\"}}; do=${{do%%\\"*}}
    if [ "$do" = call ]; then
        target=${{line#*\\"target\\": \\"}}; target=${{target%%[:\\"]*}}
        verb=${{line#*\\"verb\\": \\"}}; do=$target.${{verb%%\\"*}}
    fi
    echo "$host $do" >> "{directory}/requests"
    [ "$how.$do" = hang-at-find.pool.find ] && exec sleep 120
    answer=null
    case $do in
        pool.find)
            read -r knows < knows
            case $line in
                *'"names": null'*|*"\"$knows\""*) read -r answer < pool.find;;
                *) answer='[]';;
            esac;;
        pool.create) answer=${{line#*\\"volumes\\": }}; answer="${{answer%%]*}}]";;
        *) [ -e "$do" ] && read -r answer < "$do";;
    esac
    echo '{{"id": '$id', "result": '"$answer"'}}'
done
"""


class CannedHosts:
    """`count` hosts below `directory`: an inventory of them, and the environment that makes storkit reach them."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.names = [f"s{number}" for number in range(count)]
        self.inventory = directory / "inventory.toml"
        lines = []
        for number in range(count):
            lines += [f'[hosts.s{number}]\nurl = "ssh://s{number}"', f'[pools.p{number}]\nhost = "s{number}"']
            self._host(number)
        self.inventory.write_text("\n".join(lines) + "\n")
        binaries = directory / "bin"
        binaries.mkdir()
        (binaries / "ssh").write_text(SSH.format(directory=directory))
        (binaries / "ssh").chmod(0o755)
        self.path = str(binaries)
        """What stands first on PATH."""

    def how(self, how: str, names: Iterable[str]) -> None:
        """How these hosts are from now on: well, hang, refuse or hang-at-find."""
        for name in names:
            (self.directory / "hosts" / name / "how").write_text(how + "\n")

    def answer(self, name: str, what: str, value: Any) -> None:
        """What a host answers from now on to a request (`facts`), or a verb of a kind of target (`pool.find`)."""
        (self.directory / "hosts" / name / what).write_text(json.dumps(value) + "\n")

    def has(self, number: int, *volumes: dict[str, Any]) -> None:
        """What pool pN has from now on: nothing, or volumes of one name."""
        (self.directory / "hosts" / f"s{number}" / "knows").write_text(f"{volumes[0]['name'] if volumes else ''}\n")
        self.answer(f"s{number}", "pool.find", list(volumes))

    def volume(self, number: int, **changes: Any) -> dict[str, Any]:
        """Volume vN, as its pool tells it."""
        told = {"name": f"v{number}", "uuid": str(uuid.UUID(int=number + 1)), "size": SIZE, "pool": f"p{number}",
                "host": f"s{number}", "kind": "disk", "format": "raw", "made": "created"}  # fmt: skip
        return {**told, **changes}

    def exported(self, number: int, client: str, writable: bool = True) -> dict[str, Any]:
        """Volume vN, exported to a client."""
        volume = self.volume(number)
        return {"volume": volume["name"], "uuid": volume["uuid"], "client": client, "writable": writable,
                "transport": "nbd", "live": True}  # fmt: skip

    def ready_to_attach(self, number: int, client: str) -> None:
        """Host sN offers vN to the client, which attaches it."""
        volume, path = self.volume(number), f"/dev/storkit/v{number}"
        source = {"kind": "network", "protocol": "nbd", "export": volume["name"], "server": f"s{number}", "port": 10809}
        same = {"volume": volume["name"], "uuid": volume["uuid"], "size": SIZE, "transport": "nbd", "writable": True}
        offer = {**same, "client": client, "name": volume["name"], "identity": f"storkit:{volume['uuid']}:1",
                 "server": f"s{number}", "port": 10809}  # fmt: skip
        self.answer(f"s{number}", "transport.export", [self.exported(number, client, writable=False)])
        self.answer(f"s{number}", "transport.offers", [offer])
        self.answer(client, "transport.attach", [{**same, "host": client, "path": path, "source": source}])

    def connections(self) -> Counter[str]:
        """How often each host was connected to since this was last asked."""
        return Counter(self._log("connections"))

    def requests(self) -> Counter[tuple[str, str]]:
        """How often each host was asked what since this was last asked: ("s1", "pool.find")."""
        return Counter((host, what) for host, what in (line.split(" ", 1) for line in self._log("requests")))

    def _log(self, name: str) -> list[str]:
        path = self.directory / name
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return lines

    def _host(self, number: int) -> None:
        name = f"s{number}"
        (self.directory / "hosts" / name).mkdir(parents=True)
        self.has(number, self.volume(number))
        usage = {"pool": f"p{number}", "host": name, "total": 10 * SIZE, "free": 9 * SIZE, "provisioned": SIZE,
                 "allocated": SIZE}  # fmt: skip
        self.answer(name, "pool.capacity", usage)
        for nothing in ("lock", "transport.find_exports", "transport.find_attachments", "hypervisor.find",
                        "host.find_off", "host.find_drained"):  # fmt: skip
            self.answer(name, nothing, [])
        self.answer(name, "marked", True)
        self.answer(name, "pool.kept", {"guests": [], "damaged": []})
