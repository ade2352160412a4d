"""A dataset hub of one's own on loopback: the part of the Hub's protocol that `datasets` speaks, over a folder.

    with Hub(root) as hub: hub.url, hub.main["ada/rows"] = "b" * 40

`root/NAME/COMMIT/` holds the files of a commit of the data set NAME; `main` says which commit that name is now.
"""

import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Hub:
    def __init__(self, root: Path) -> None:
        self.main: dict[str, str] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                self.send(*hub.answer(root, urllib.parse.urlsplit(self.path).path, self.body()))

            do_HEAD = do_POST = do_GET

            def body(self) -> str:
                return self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()

            def send(self, status: int, headers: dict[str, str], content: bytes) -> None:
                asked = self.headers.get("Range", "")
                if status == 200 and asked.startswith("bytes="):
                    first, _, last = asked.removeprefix("bytes=").partition("-")
                    end = int(last) + 1 if last else len(content)
                    headers["Content-Range"] = f"bytes {first}-{min(end, len(content)) - 1}/{len(content)}"
                    status, content = 206, content[int(first) : end]
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, root: Path, path: str, body: str) -> tuple[int, dict[str, str], bytes]:
        parts = urllib.parse.unquote(path).strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[api:]
        if parts[:1] != ["datasets"] or len(parts) < 3:
            return 404, {}, b"{}"
        name, verb, rest = "/".join(parts[1:3]), *(parts[3:4] or ["revision"]), parts[4:] or ["main"]
        commit = self.main.get(name, "") if rest[0] == "main" else rest[0]
        folder = root / name / commit
        if name not in self.main:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if not commit or not folder.is_dir():
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if not api:
            file = folder / "/".join(rest[1:])
            if file not in files:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
            content = file.read_bytes()
            return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}, content
        if verb == "revision":
            siblings = [{"rfilename": str(file.relative_to(folder))} for file in files]
            return found({"id": name, "sha": commit, "siblings": siblings, "private": False})
        if verb == "paths-info":
            wanted = urllib.parse.parse_qs(body).get("paths") or json.loads(body)["paths"]
            return found([described(folder, folder / one) for one in wanted if (folder / one).exists()])
        if verb == "tree":
            below = folder / "/".join(rest[1:])
            if not below.is_dir():
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            return found([described(folder, one) for one in sorted(below.rglob("*"))])
        return 404, {}, b"{}"


def described(folder: Path, path: Path) -> dict[str, Any]:
    where = str(path.relative_to(folder))
    oid = hashlib.sha1(where.encode()).hexdigest()
    if path.is_dir():
        return {"type": "directory", "path": where, "oid": oid, "size": 0}
    return {
        "type": "file",
        "path": where,
        "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        "size": path.stat().st_size,
    }


def found(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
