"""A hub of models on the loopback address, which answers what uploads and downloads ask."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Every file is a regular one: the hub itself stores weights elsewhere (LFS, xet), which is the
    work of huggingface_hub and not tested here.

    Attributes:
        repos: repository -> path -> content.
        requests: method and path of each request.
        private: the repositories that were made private.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.private: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str) -> str:
        files = sorted(self.repos[repo].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub until the block ends."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        match path.strip("/").split("/"):
            case ["api", "models", owner, name, "revision", *_] if self._has(owner, name):
                repo = f"{owner}/{name}"
                files = [{"rfilename": file} for file in self.server.repos[repo]]
                commit = self.server.commit(repo)
                self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": files})
            case ["api", "models", owner, name, "tree", *_] if self._has(owner, name):
                self._json(
                    [
                        {"type": "file", "path": file, "size": len(content), "oid": _oid(content)}
                        for file, content in self.server.repos[f"{owner}/{name}"].items()
                    ]
                )
            case [owner, name, "resolve", _, *parts] if self._has(owner, name):
                content = self.server.repos[f"{owner}/{name}"].get("/".join(parts))
                if content is None:
                    self._missing("EntryNotFound")
                else:
                    headers = {
                        "ETag": f'"{_oid(content)}"',
                        "X-Repo-Commit": self.server.commit(f"{owner}/{name}"),
                    }
                    self._answer(content, headers=headers)
            case _:
                self._missing("RepoNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        path = self._path()
        if not self.headers.get("Authorization"):
            self._json({"error": "Invalid username or password."}, 401)
            return
        match path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                self.server.repos.setdefault(repo, {})
                if asked.get("visibility") == "private" or asked.get("private"):
                    self.server.private.add(repo)
                self._json({"url": f"{self.server.url}/{repo}", "name": repo})
            case ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["api", "models", owner, name, "preupload", _] if self._has(owner, name):
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self._json({"files": files})
            case ["api", "models", owner, name, "commit", _] if self._has(owner, name):
                repo = f"{owner}/{name}"
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        self.server.repos[repo][line["value"]["path"]] = content
                commit = self.server.commit(repo)
                url = f"{self.server.url}/{repo}/commit/{commit}"
                self._json({"commitOid": commit, "commitUrl": url, "success": True})
            case _:
                self._missing("RepoNotFound")

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        return path

    def _has(self, owner: str, name: str) -> bool:
        return f"{owner}/{name}" in self.server.repos

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _missing(self, code: str) -> None:
        self._answer(b"{}", 404, {"X-Error-Code": code})

    def _json(self, content: Any, status: int = 200) -> None:
        self._answer(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _answer(
        self, content: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
