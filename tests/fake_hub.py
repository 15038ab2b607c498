"""A Hugging Face Hub on this machine with one repository, gated where it has a token."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What a repository is, is public; its files need the token, where there is one."""

    def __init__(self, name: str, folder: Path, token: str, asked: list[str], *arguments: object) -> None:
        self.name, self.folder, self.token, self.asked = name, folder, token, asked
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if not path.removeprefix("/api/models").startswith(f"/{self.name}"):
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            files = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": f"{number:040x}"}
                for number, path in enumerate(sorted(self.folder.iterdir()))
            ]
            self._answer(200, json.dumps(files).encode(), {})
        elif path.startswith("/api/"):
            names = [
                {"rfilename": path.name, "size": path.stat().st_size, "blobId": f"{number:040x}"}
                for number, path in enumerate(sorted(self.folder.iterdir()))
            ]
            about = {
                "id": self.name, "sha": COMMIT, "siblings": names, "gated": "manual" if self.token else False,
                "cardData": {"license": "apache-2.0"},
            }  # fmt: skip
            self._answer(200, json.dumps(about).encode(), {})
        elif self.token and self.headers.get("authorization") != f"Bearer {self.token}":
            self._answer(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        else:
            content = (self.folder / path.rpartition("/")[2]).read_bytes()
            self._answer(200, content, {"ETag": f'"{len(content):x}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET  # noqa: N815 (the name http.server looks for)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Silent."""


@contextlib.contextmanager
def serving(name: str, folder: Path, token: str = "") -> Iterator[tuple[str, list[str]]]:
    """The Hub's address (for HF_ENDPOINT), and what it is asked."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, name, folder, token, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
