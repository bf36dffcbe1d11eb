# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A small server on the loopback that speaks the Hub's HTTP protocol: create, preupload, LFS, commit, resolve."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


USER = "someone"
TOKEN = "hf_WriteTokenOfSomeone"
LARGE_FILES = (".safetensors", ".bin", ".model", ".pt")


@dataclass
class Repository:
    """A model repository: its files, and its commits."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=lambda: [hashlib.sha1(b"initial commit").hexdigest()])

    def entries(self) -> list[dict[str, Any]]:
        """As the Hub lists them: a large file with its LFS pointer's content, others with git's hash."""
        entries = []
        for path, content in sorted(self.files.items()):
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            if path in self.large:
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries


@dataclass
class Fault:
    """What the server answers to requests of a method whose path matches."""

    method: str
    path: str
    status: int
    message: str = ""


class LocalHub(ThreadingHTTPServer):
    """Attributes:
    repositories: by id.
    fault: how the server fails; `None` if it works.
    requests: method, path and status of all requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.verified: set[str] = set()
        self.requests: list[tuple[str, str, int]] = []
        self.fault: Fault | None = None

    def hold(self, repo_id: str, directory: Path) -> None:
        """Takes the files of a directory for a repository's."""
        repository = self.repositories[repo_id] = Repository()
        repository.files = {path.name: path.read_bytes() for path in directory.iterdir()}
        repository.large = {name for name in repository.files if name.endswith(LARGE_FILES)}
        self.uploads |= {sha256(repository.files[name]): repository.files[name] for name in repository.large}

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a process take this server for the Hub."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def running_hub() -> Iterator[LocalHub]:
    """A running server."""
    hub = LocalHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubError(Exception):
    """An answer of the Hub that is not a success, with its headers for the reason."""

    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


REPO, REVISION, OID = r"(?P<repo_id>[\w.-]+/[\w.-]+)", r"(?P<revision>[\w.-]+)", r"(?P<oid>[0-9a-f]{64})"
ROUTES: list[tuple[str, str, Callable]] = []


def route(method: str, pattern: str) -> Callable[[Callable], Callable]:
    """Has a method of `Handler` answer the requests whose path matches; its arguments are the pattern's groups."""

    def add(action: Callable) -> Callable:
        ROUTES.append((method, pattern, action))
        return action

    return add


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            fault = self.server.fault
            if fault is not None and fault.method == self.command and re.search(fault.path, self.path):
                raise HubError(fault.status, fault.message)
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, self.path)
                if method == self.command.replace("HEAD", "GET") and match:
                    status, headers, content = action(self, body, **match.groupdict())
                    break
            else:
                raise HubError(404, f"This server knows no {self.command} {self.path}")
        except HubError as error:
            status, content = error.status, json.dumps({"error": error.message}).encode()
            headers = {"Content-Type": "application/json", "X-Error-Message": error.message}
            if error.code is not None:
                headers["X-Error-Code"] = error.code
        self.server.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    # Who asks for what

    def check_token(self) -> None:
        authorization = self.headers.get("Authorization", "")
        if authorization != f"Bearer {TOKEN}":
            raise HubError(401, "Invalid username or password." if authorization == "" else "Invalid credentials")

    def repository(self, repo_id: str, revision: str = "main") -> Repository:
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.private and self.headers.get("Authorization", "") != f"Bearer {TOKEN}"):
            raise HubError(401 if "Authorization" not in self.headers else 404, "Repository not found", "RepoNotFound")
        if revision not in ("main", repository.commits[-1]):
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository

    # Writing

    @route("GET", r"/api/whoami-v2")
    def whoami(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.check_token()
        return in_json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    @route("POST", r"/api/repos/create")
    def create(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.check_token()
        request = json.loads(body)
        owner = request.get("organization") or USER
        if owner != USER:
            raise HubError(404, f"There is no organization {owner}", "RepoNotFound")
        repo_id = f"{owner}/{request['name']}"
        exists = repo_id in self.server.repositories
        private = bool(request.get("private") or request.get("visibility") == "private")
        self.server.repositories.setdefault(repo_id, Repository(private=private))
        url = {"url": f"{self.server.endpoint}/{repo_id}", "id": repo_id, "name": repo_id}
        return in_json(url, status=409 if exists else 200)

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return in_json({"errors": [], "warnings": []})

    @route("POST", rf"/api/models/{REPO}/preupload/{REVISION}")
    def preupload(self, body: bytes, repo_id: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        self.check_token()
        known = {entry["path"]: entry for entry in self.repository(repo_id, revision).entries()}
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(LARGE_FILES) else "regular"
            entry = known.get(file["path"], {})
            oid = entry.get("lfs", entry).get("oid")
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return in_json({"files": files})

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def lfs_batch(self, body: bytes, repo_id: str) -> tuple[int, dict[str, str], bytes]:
        self.check_token()
        self.repository(repo_id)
        objects = []
        for wanted in json.loads(body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            item = {"oid": oid, "size": size}
            if oid not in self.server.verified:
                upload = {"href": f"{self.server.endpoint}/lfs/{oid}"}
                verify = {"href": f"{self.server.endpoint}/lfs/{oid}/verify"}
                item["actions"] = {"upload": upload, "verify": verify}
            objects.append(item)
        return in_json({"transfer": "basic", "objects": objects})

    @route("PUT", rf"/lfs/{OID}")
    def lfs_upload(self, body: bytes, oid: str) -> tuple[int, dict[str, str], bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self.chunks())
        if sha256(body) != oid:
            raise HubError(400, "The content is not what its hash says")
        self.server.uploads[oid] = body
        return 200, {}, b""

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    @route("POST", rf"/lfs/{OID}/verify")
    def lfs_verify(self, body: bytes, oid: str) -> tuple[int, dict[str, str], bytes]:
        self.check_token()
        if len(self.server.uploads.get(oid, b"")) != json.loads(body)["size"]:
            raise HubError(404, f"No object {oid} of this size")
        self.server.verified.add(oid)
        return 200, {}, b""

    @route("POST", rf"/api/models/{REPO}/commit/{REVISION}")
    def commit(self, body: bytes, repo_id: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        self.check_token()
        repository = self.repository(repo_id, revision)
        for operation in map(json.loads, body.splitlines()):
            key, value = operation["key"], operation["value"]
            if key == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.verified:
                    raise HubError(400, f"{value['path']} was not uploaded")
                repository.files[value["path"]] = self.server.uploads[value["oid"]]
                repository.large.add(value["path"])
            elif key == "deletedFile":
                del repository.files[value["path"]]
        commit = hashlib.sha1(body).hexdigest()
        repository.commits.append(commit)
        url = f"{self.server.endpoint}/{repo_id}/commit/{commit}"
        return in_json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    # Reading

    @route("GET", rf"/api/models/{REPO}")
    @route("GET", rf"/api/models/{REPO}/revision/{REVISION}")
    def info(self, body: bytes, repo_id: str, revision: str = "main") -> tuple[int, dict[str, str], bytes]:
        repository = self.repository(repo_id, revision)
        info = {
            "_id": "0",
            "id": repo_id,
            "modelId": repo_id,
            "sha": repository.commits[-1],
            "tags": [],
            "downloads": 0,
        }
        siblings = [{"rfilename": path} for path in repository.files]
        return in_json({**info, "private": repository.private, "likes": 0, "siblings": siblings})

    @route("GET", rf"/api/models/{REPO}/tree/{REVISION}(/(?P<folder>.+))?")
    def tree(
        self, body: bytes, repo_id: str, revision: str, folder: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        entries = self.repository(repo_id, revision).entries()
        entries = [entry for entry in entries if folder is None or entry["path"].startswith(f"{folder}/")]
        if folder is not None and not entries:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        return in_json(entries)

    @route("GET", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, body: bytes, repo_id: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        repository = self.repository(repo_id, revision)
        headers = {"X-Repo-Commit": repository.commits[-1]}
        if path not in repository.files:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        content = repository.files[path]
        if path not in repository.large:
            return 200, {**headers, "ETag": f'"{git_oid(content)}"'}, content
        oid = sha256(content)
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{oid}"'}
        # Large files are on another host, to which the client takes no token.
        return 302, {**headers, "Location": f"http://localhost:{self.server.server_port}/lfs/{oid}"}, b""

    @route("GET", rf"/lfs/{OID}")
    def lfs_download(self, body: bytes, oid: str) -> tuple[int, dict[str, str], bytes]:
        content = self.server.uploads[oid]
        return 200, {"ETag": f'"{oid}"'}, content


def in_json(content: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()
