"""A Hugging Face hub on this machine: as much of its protocol as uploading a folder takes."""

import base64
import hashlib
import http.server
import json
import threading
from typing import Any

TOKEN = "hf_of_the_test"


class Hub(http.server.ThreadingHTTPServer):
    """Accounts, repositories, and what was committed to them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        #: Commits are refused.
        self.full = False
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, content: Any, code: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/whoami-v2":
            self._answer({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        else:
            self._answer({"id": "me/mine", "sha": "0" * 40, "siblings": [], "tags": []})

    def do_PUT(self) -> None:
        content = self._body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            self.server.repositories.add(name)
            self._answer({"url": f"{self.server.address}/{name}", "name": name, "id": "1"})
        elif "/preupload/" in self.path:
            files = [{**_mode(file["path"]), "path": file["path"]} for file in json.loads(body)["files"]]
            self._answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.address}/large/{each['oid']}", "header": {}}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"errors": [], "warnings": []})  # what a model card is checked by

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        if self.server.full:
            self._answer({"error": "no room"}, 403)
            return
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.large[value["oid"]]
        url = f"{self.server.address}/me/mine/commit/{'1' * 40}"
        self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})


def _mode(path: str) -> dict[str, Any]:
    return {"uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False, "oid": None}
