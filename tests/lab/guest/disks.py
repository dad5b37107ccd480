"""Runs inside a host of the lab: opens, reads and writes what is behind attachments, one JSON object a line.

    <- {"id": 1, "handle": 7, "do": "open", "attachment": {...}}
    <- {"id": 2, "handle": 7, "do": "write", "offset": 0, "data": "00ff..."}
    -> {"id": 2, "result": null}    or {"id": 2, "oserror": [5, "Input/output error"]}    or {"id": 2, "error": {...}}

Each handle has a thread of its own: one that hangs in a write delays no other.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from contextlib import ExitStack
from typing import Any

from storkit.core import codec
from storkit.core.errors import StorkitError
from storkit.core.model import Attachment
from tests.contract.access import Access, access

writing = threading.Lock()


def answer(**fields: Any) -> None:
    with writing:
        print(json.dumps(fields), flush=True)


class Handle:
    """One use of an attachment."""

    def __init__(self) -> None:
        self.requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._access: Access | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with ExitStack() as stack:
            while True:
                request = self.requests.get()
                if request["do"] == "close":
                    break
                try:
                    answer(id=request["id"], result=self._do(stack, request))
                except StorkitError as error:
                    answer(id=request["id"], error=error.to_json())
                except OSError as error:
                    answer(id=request["id"], oserror=[error.errno or 5, error.strerror or str(error)])
        answer(id=request["id"], result=None)

    def _do(self, stack: ExitStack, request: dict[str, Any]) -> str | None:
        if request["do"] == "open":
            self._access = stack.enter_context(access(codec.load(Attachment, request["attachment"])))
            return None
        assert self._access is not None
        if request["do"] == "read":
            return self._access.read(request["offset"], request["length"]).hex()
        self._access.write(request["offset"], bytes.fromhex(request["data"]))
        return None


def main() -> None:
    handles: dict[int, Handle] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "open":
            handles[request["handle"]] = Handle()
        handles[request["handle"]].requests.put(request)
        if request["do"] == "close":
            del handles[request["handle"]]


if __name__ == "__main__":
    main()
