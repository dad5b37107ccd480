"""Images from the web: whole and checked, or not at all. The server is this test's own, on the loopback."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.e2e.world import World
from tests.guestkit import bootsector

IMAGE = bytes(bootsector.SIZE - 512) + b"end".ljust(512, b".")
DIGEST = f"sha256:{hashlib.sha256(IMAGE).hexdigest()}"


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            return self._answer(302, b"", ("Location", "/image"))
        if self.path in ("/file", "/ftp"):
            where = "file:///etc/passwd" if self.path == "/file" else "ftp://127.0.0.1/x"
            return self._answer(302, b"", ("Location", where))
        if self.path == "/cut":
            return self._answer(200, IMAGE[:1000], ("Content-Length", str(len(IMAGE))))
        if self.path != "/image":
            return self._answer(404, b"")
        return self._answer(200, IMAGE)

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers or [("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_image_is_fetched_whole_or_not_at_all(world: World, url: str) -> None:
    def fetch(place: str, *more: str, ok: int = 0) -> str:
        return world.storkit("volume", "import", f"{url}/{place}", "v", *more, ok=ok).stderr

    assert "can be changed on its way" in fetch("image", ok=2)
    for place in ("image", "moved"):
        fetch(place, "--checksum", DIGEST)
        assert world.disk("v").read_bytes() == IMAGE
        world.storkit("volume", "delete", "v")
    assert "404" in fetch("none", "--checksum", DIGEST, ok=4)
    assert f"broke off {len(IMAGE) - 1000} bytes before its end" in fetch("cut", "--checksum", DIGEST, ok=2)
    assert "checksum" in fetch("image", "--checksum", f"sha256:{'0' * 64}", ok=2)
    for place in ("file", "ftp"):
        assert "next:" in fetch(place, "--checksum", DIGEST, ok=2)
    secret = world.storkit("volume", "import", "https://ann:geheim@127.0.0.1/x", "v", ok=2).stderr
    assert "a password in it is not fetched" in secret and "geheim" not in secret
    assert "cannot be fetched" in world.storkit("volume", "import", "https://127.0.0.1:1/x", "v", ok=2).stderr
    assert world.storkit("--json", "volume", "list").json == [] and not list(world.directory.rglob("stream-*"))
