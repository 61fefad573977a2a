"""A Hugging Face Hub in memory, served on 127.0.0.1 for huggingface_hub's client.

    python tests/hub_server.py TOKEN    # prints its address and serves until it is stopped; the token's owner is "me"

Like the real Hub, it uploads and downloads LFS files through a second server, to which the client must send no token.
Requests fail on demand, see `Hub.fail`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".png")


@dataclass(frozen=True)
class Blob:
    """A file's content, its git object id, and its SHA-256 if it is an LFS file."""

    data: bytes
    oid: str
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass
class Repo:
    """A repository: commits (id -> path -> file), branches and tags (name -> id)."""

    owner: str
    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        known = {commit: commit for commit in self.commits} | self.tags | self.branches
        return known.get(revision)

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        names = [f"{path} {blob.etag}" for path, blob in sorted(files.items())]
        sha = hashlib.sha1("\n".join([str(len(self.messages)), branch, message, *names]).encode()).hexdigest()
        self.commits[sha] = files
        self.messages.append(message)
        self.branches[branch] = sha
        return sha


@dataclass
class Fault:
    """A failure of requests: an HTTP status, half a body, or a barrier."""

    method: str
    path: str
    kind: int | str | threading.Barrier
    times: int


class ResponseError(Exception):
    """An error response, as the Hub sends it."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Hub:
    """The server's state.

    Args:
        tokens: token -> name of its owner.

    Attributes:
        requests: "METHOD path" of all requests in order, followed by " from N" for a range from byte N.
        leaked: requests to the file store that carried a token.
        extra_names: repository -> names of missing files that it lists.
        half_sent: set when the fault "hang" has sent half a body.
        released: ends the fault "hang" when set.
    """

    def __init__(self, tokens: dict[str, str]) -> None:
        self.tokens = tokens
        self.repos: dict[str, Repo] = {}
        self.store: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.leaked: list[str] = []
        self.extra_names: dict[str, list[str]] = {}
        self.half_sent, self.released = threading.Event(), threading.Event()
        self.lock = threading.RLock()
        self.endpoint = self.cdn = ""

    def fail(self, method: str, path: str, kind: int | str | threading.Barrier, times: int = 1) -> None:
        """Make the next matching requests fail.

        Args:
            method: "GET", "HEAD", "POST" or "PUT".
            path: regular expression to search in the path.
            kind: an HTTP status; "drop": close the connection in the middle of the body; "hang": send half the body
                and wait; a barrier: respond as usual once all requests have arrived.
            times: number of requests that fail.
        """
        self.faults.append(Fault(method, path, kind, times))

    def take_fault(self, method: str, path: str) -> int | str | threading.Barrier | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault.kind
        return None

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        """Serve in threads of this process; `endpoint` is the address."""
        handler = type("Handler", (_Handler,), {"hub": self})
        servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
        for server in servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield self
        finally:
            self.released.set()
            for server in servers:
                server.shutdown()
                server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
    ROUTES = (
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/repos/create", "create_repo"),
        ("POST", "/api/validate-yaml", "validate_yaml"),
        ("GET", f"/api/models/{REPO}", "model_info"),
        ("GET", f"/api/models/{REPO}/revision/(?P<revision>.+)", "model_info"),
        ("GET", f"/api/models/{REPO}/tree/(?P<revision>[^/]+)", "tree"),
        ("GET", f"/api/models/{REPO}/refs", "refs"),
        ("POST", f"/api/models/{REPO}/branch/(?P<branch>.+)", "create_branch"),
        ("POST", f"/api/models/{REPO}/tag/(?P<revision>.+)", "create_tag"),
        ("POST", f"/api/models/{REPO}/preupload/(?P<revision>.+)", "preupload"),
        ("POST", f"/api/models/{REPO}/commit/(?P<branch>.+)", "commit"),
        ("POST", f"/{REPO}.git/info/lfs/objects/batch", "lfs_batch"),
        ("POST", f"/{REPO}.git/info/lfs/verify", "lfs_verify"),
        ("HEAD|GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("PUT", "/store/(?P<oid>[0-9a-f]{64})", "store_put"),
        ("HEAD|GET", "/store/(?P<oid>[0-9a-f]{64})", "store_get"),
    )

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.respond()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def respond(self) -> None:
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        start = re.search(r"bytes=(\d+)", self.headers.get("Range", ""))
        self.hub.requests.append(f"{self.command} {split.path}" + (f" from {start[1]}" if start else ""))
        self.fault = self.hub.take_fault(self.command, split.path)
        if self.fault == "drop" and self.command != "GET":
            return self.break_off()
        self.body = self.read_body()
        if isinstance(self.fault, threading.Barrier):
            self.fault.wait(300)
        try:
            if isinstance(self.fault, int):
                raise ResponseError(self.fault, message="a fault on demand")
            for methods, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, split.path)
                if match and self.command in methods.split("|"):
                    getattr(self, name)(**{key: unquote(value) for key, value in match.groupdict().items()})
                    return None
            raise ResponseError(404, message=f"no such address: {split.path}")
        except ResponseError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self.send_json({"error": error.message}, error.status, {k: v for k, v in headers.items() if v})

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def break_off(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault not in ("drop", "hang"):
            self.wfile.write(data)
            return
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if self.fault == "hang":
            self.hub.half_sent.set()
            self.hub.released.wait(300)
        self.break_off()

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    # Permissions

    def user(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in self.hub.tokens:
            raise ResponseError(401, message="Invalid credentials in Authorization header")
        return self.hub.tokens.get(given)

    def readable(self, repo: str) -> Repo:
        user, found = self.user(), self.hub.repos.get(repo)
        if found is None or (found.private and user != found.owner):
            raise ResponseError(404 if user else 401, "RepoNotFound", "Repository not found")
        return found

    def writable(self, repo: str) -> Repo:
        found, user = self.readable(repo), self.user()
        if user is None:
            raise ResponseError(401, message="Invalid username or password.")
        if user != found.owner:
            raise ResponseError(403, message=f"{user} may not write to {repo}")
        return found

    def files(self, repo: Repo, revision: str) -> tuple[str, dict[str, Blob]]:
        sha = repo.resolve(revision)
        if sha is None:
            raise ResponseError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.commits[sha]

    # Routes

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise ResponseError(401, message="Invalid username or password.")
        self.send_json({"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create_repo(self) -> None:
        request, user = json.loads(self.body), self.user()
        if user is None:
            raise ResponseError(401, message="Invalid username or password.")
        owner = request.get("organization") or user
        if owner != user:
            raise ResponseError(403, message=f"{user} has no rights to create a model in {owner}")
        repo_id = f"{owner}/{request['name']}"
        url = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}
        with self.hub.lock:
            if repo_id in self.hub.repos:
                return self.send_json({**url, "error": "You already created this model repo"}, 409)
            private = request.get("visibility") == "private" or request.get("private") is True
            repo = self.hub.repos[repo_id] = Repo(owner, private)
            repo.commit("main", {".gitattributes": plain_file(b"*.safetensors filter=lfs\n")}, "initial commit")
        return self.send_json(url)

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else {}
            errors = [] if isinstance(metadata, dict) else ["metadata is not a mapping"]
            errors += model_index_errors(metadata.get("model-index", [])) if not errors else []
        except yaml.YAMLError as error:
            errors = [str(error)]
        found = {"errors": [{"message": error} for error in errors], "warnings": []}
        self.send_json(found, 400 if errors else 200)

    def model_info(self, repo: str, revision: str = "main") -> None:
        found = self.readable(repo)
        sha, files = self.files(found, revision)
        extra = self.hub.extra_names.get(repo, [])
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in (*files, *extra)]
        if "blobs" in self.query:
            siblings = [{"rfilename": name, **describe(blob, "blobId")} for name, blob in files.items()]
            siblings += [{"rfilename": name, "size": 9, "blobId": "0" * 40} for name in extra]
        info = {"id": repo, "modelId": repo, "sha": sha, "private": found.private, "siblings": siblings, "tags": []}
        self.send_json(info)

    def tree(self, repo: str, revision: str) -> None:
        _, files = self.files(self.readable(repo), revision)
        extra = self.hub.extra_names.get(repo, [])
        entries = [{"type": "file", "path": name, **describe(blob, "oid")} for name, blob in files.items()]
        entries += [{"type": "file", "path": name, "size": 9, "oid": "0" * 40} for name in extra]
        self.send_json(entries)

    def refs(self, repo: str) -> None:
        found = self.readable(repo)
        branches = [{"name": k, "ref": f"refs/heads/{k}", "targetCommit": v} for k, v in found.branches.items()]
        tags = [{"name": k, "ref": f"refs/tags/{k}", "targetCommit": v} for k, v in found.tags.items()]
        self.send_json({"branches": branches, "tags": tags, "converts": []})

    def create_branch(self, repo: str, branch: str) -> None:
        found = self.writable(repo)
        if branch.startswith("refs/"):
            raise ResponseError(400, message=f"Invalid reference for a branch: {branch}")
        sha, _ = self.files(found, json.loads(self.body or b"{}").get("startingPoint", "main"))
        if found.branches.setdefault(branch, sha) != sha:
            raise ResponseError(409, message=f"Reference {branch} exists already")
        self.send_json({})

    def create_tag(self, repo: str, revision: str) -> None:
        found = self.writable(repo)
        found.tags[json.loads(self.body)["tag"]], _ = self.files(found, revision)
        self.send_json({})

    def preupload(self, repo: str, revision: str) -> None:
        _, files = self.files(self.writable(repo), revision)
        modes = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            oid = files[file["path"]].etag if file["path"] in files else None
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": modes})

    def lfs_batch(self, repo: str) -> None:
        self.writable(repo)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.store:
                upload = {"href": f"{self.hub.cdn}/store/{wanted['oid']}"}
                found["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{self.hub.endpoint}/{repo}.git/info/lfs/verify"},
                }
            objects.append(found)
        self.send_json({"transfer": "basic", "objects": objects})

    def store_put(self, oid: str) -> None:
        self.note_leak()
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise ResponseError(400, message="the content does not match its SHA-256")
        self.hub.store[oid] = self.body
        self.send(b"")

    def lfs_verify(self, repo: str) -> None:
        self.writable(repo)
        uploaded = json.loads(self.body)
        if len(self.hub.store.get(uploaded["oid"], b"")) != uploaded["size"]:
            raise ResponseError(404, message="the object was not uploaded")
        self.send_json({})

    def commit(self, repo: str, branch: str) -> None:
        found = self.writable(repo)
        lines = [json.loads(line) for line in self.body.splitlines()]
        head = next(line["value"] for line in lines if line["key"] == "header")
        with self.hub.lock:
            sha, before = self.files(found, branch)
            if branch not in found.branches:
                raise ResponseError(400, message=f"{branch} is not a branch")
            if head.get("parentCommit") not in (None, sha):
                raise ResponseError(412, message="A commit has happened since. Please refresh and try again.")
            files = dict(before)
            for line in lines:
                self.change(files, line["key"], line["value"])
            sha = found.commit(branch, files, head["summary"])
        url = f"{self.hub.endpoint}/{repo}/commit/{sha}"
        self.send_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def change(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            files[value["path"]] = plain_file(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.hub.store:
                raise ResponseError(400, message=f"the content of {value['path']} was not uploaded")
            files[value["path"]] = lfs_file(self.hub.store[value["oid"]])
        elif key == "deletedFile" and files.pop(value["path"], None) is None:
            raise ResponseError(404, "EntryNotFound", "A file with this name doesn't exist")

    def resolve(self, repo: str, revision: str, path: str) -> None:
        sha, files = self.files(self.readable(repo), revision)
        if path not in files:
            raise ResponseError(404, "EntryNotFound", "Entry not found")
        blob, headers = files[path], {"X-Repo-Commit": sha}
        if blob.sha256 is None:
            return self.send_ranged(blob.data, {**headers, "ETag": f'"{blob.oid}"'})
        linked = {"X-Linked-Size": str(len(blob.data)), "X-Linked-ETag": f'"{blob.sha256}"'}
        return self.send(b"", 302, {**headers, **linked, "Location": f"{self.hub.cdn}/store/{blob.sha256}"})

    def store_get(self, oid: str) -> None:
        self.note_leak()
        if oid not in self.hub.store:
            raise ResponseError(404, message="no such object")
        self.send_ranged(self.hub.store[oid], {"ETag": f'"{oid}"'})

    def send_ranged(self, data: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.send(data, 200, {**headers, "Accept-Ranges": "bytes"})
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if first > last:
            return self.send(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
        part = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return self.send(data[first : last + 1], 206, part)

    def note_leak(self) -> None:
        if "Authorization" in self.headers:
            self.hub.leaked.append(f"{self.command} {self.path}")


def plain_file(data: bytes) -> Blob:
    return Blob(data, hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest())


def lfs_file(data: bytes) -> Blob:
    """Return a file that git LFS stores; git itself stores a pointer to it."""
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n"
    return Blob(data, plain_file(pointer.encode()).oid, sha256)


def describe(blob: Blob, oid_key: str) -> dict[str, Any]:
    found: dict[str, Any] = {oid_key: blob.oid, "size": len(blob.data)}
    if blob.sha256 is not None:
        sha_key = "sha256" if oid_key == "blobId" else "oid"
        found["lfs"] = {sha_key: blob.sha256, "size": len(blob.data), "pointerSize": 130}
    return found


def model_index_errors(index: list[dict[str, Any]]) -> list[str]:
    """Return the errors of a model card's results.

    The format is https://github.com/paperswithcode/model-index.
    """
    errors = []
    for model in index:
        if not model.get("name"):
            errors.append("a model of model-index has no name")
        for result in model.get("results", []):
            if "type" not in result.get("task", {}) or not {"name", "type"} <= result.get("dataset", {}).keys():
                errors.append("a result has no task type, or no dataset name and type")
            for metric in result.get("metrics", []):
                if "type" not in metric or not isinstance(metric.get("value"), (int, float)):
                    errors.append("a metric has no type, or its value is not a number")
    return errors


if __name__ == "__main__":
    with Hub({sys.argv[1]: "me"}).serving() as hub:
        print(hub.endpoint, flush=True)
        threading.Event().wait()
