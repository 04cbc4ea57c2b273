"""A stand-in for the hub's API on this machine: repositories of models, commits and downloads,
without a network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from maskwise.models import starts

COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """What ``push_to_hub`` and ``snapshot_download`` ask of huggingface.co."""

    files: dict[str, dict[str, bytes]]  # by repository, by path
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            owner = json.loads(body).get("organization") or "me"
            self.files.setdefault(f"{owner}/{name}", {})
            self._answer({"url": f"http://{self.headers['Host']}/{owner}/{name}"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._answer({"files": [{"path": name, **plain} for name in names]})
        elif "/commit/" in self.path:
            repository = "/".join(self.path.split("/")[3:5])
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.files[repository][item["value"]["path"]] = base64.b64decode(
                        item["value"]["content"]
                    )
            self._answer(
                {
                    "commitOid": COMMIT,
                    "commitUrl": f"http://{self.headers['Host']}/{repository}/commit/{COMMIT}",
                }
            )
        else:  # such as validate-yaml, of cards
            self._answer({"errors": [], "warnings": []})

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, *, body: bool = True) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.files:
            name = "/".join(parts[2:4])
            if "tree" in parts:
                facts = {"type": "file", "oid": COMMIT}
                self._answer(
                    [{"path": p, "size": len(c), **facts} for p, c in self.files[name].items()]
                )
                return
            siblings = [
                {"rfilename": path, "size": len(content)}
                for path, content in self.files[name].items()
            ]
            self._answer(
                {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            )
        elif (
            len(parts) > 4
            and parts[2] == "resolve"
            and (content := self.files.get("/".join(parts[:2]), {}).get("/".join(parts[4:])))
        ):
            self._answer(
                content,
                body=body,
                ETag=f'"{hashlib.sha1(content).hexdigest()}"',
                **{"X-Repo-Commit": COMMIT},
            )
        elif parts == [""]:
            self._answer(b"a hub", body=body)
        else:
            lacks = "EntryNotFound" if "/".join(parts[:2]) in self.files else "RepoNotFound"
            self._answer({"error": "not found"}, status=404, body=body, **{"X-Error-Code": lacks})

    def _answer(self, what: Any, *, status: int = 200, body: bool = True, **headers: str) -> None:
        content = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def running_hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """The address of a stand-in that runs in a thread, and its files."""
    handler = type("Handler", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.files
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def talking_to_a_hub(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> Iterator[dict[str, dict[str, bytes]]]:
    """This process talks to a stand-in, whose files are given; what it brings lies in ``cache``."""
    with running_hub() as (address, files):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        starts._hub_answers.cache_clear()
        yield files
        starts._hub_answers.cache_clear()
