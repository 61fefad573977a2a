"""Push and download with the real client in other processes, from hub_server.py."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Blob, Hub, Repo, lfs_file, plain_file
from safetensors.torch import load_file

from c2f_zoo import C2FModel

pytestmark = pytest.mark.slow  # every test talks to a server

# The first lines of each client process. A model is identified by its seed.
PRELUDE = """
import json, sys, torch
torch.set_num_threads(1)
from safetensors.torch import load_file, save_file
from c2f_zoo import C2FModel, create_model
from c2f_zoo.io import hub

def make(seed, dim=8):
    torch.manual_seed(seed)
    options = {"pooling_options": {"dim": dim}, "resolutions": {"family": 32}}
    return create_model("mlph", backbone="test_convnext", hierarchy="cub", input_size=64, **options).eval()

def logits(model):
    with torch.inference_mode():
        x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        return dict(model.eval()(x))

def same(model, file):
    want, got = load_file(file), logits(model)
    return want.keys() == got.keys() and all(torch.equal(got[level], want[level]) for level in want)

def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

result = {}
"""
# Runs the blocks of code that it reads, one JSON string a line, and prints the result of each.
SERVE = """
for line in sys.stdin:
    result.clear()
    exec(json.loads(line))
    print(json.dumps(result), flush=True)
"""


def obey_permissions() -> None:
    """Give up root's right to write files that may only be read; of a process that starts."""
    if sys.platform == "linux" and os.getuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def start(code: str, endpoint: str, home: Path, errors: Any = None, **environment: str) -> subprocess.Popen[str]:
    """Start a client with its own cache and environment."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", PRELUDE + code + "\nprint(json.dumps(result))"]
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors or subprocess.PIPE}
    options |= {"text": True, "preexec_fn": obey_permissions}
    return subprocess.Popen(command, env={**kept, **hub, "OMP_NUM_THREADS": "1", **environment}, **options)


def finish(client: subprocess.Popen[str]) -> dict[str, Any]:
    printed, errors = client.communicate(timeout=300)
    assert client.returncode == 0, errors[-3000:]
    return json.loads(printed.splitlines()[-1])


def run(code: str, endpoint: str, home: Path, **environment: str) -> dict[str, Any]:
    return finish(start(code, endpoint, home, **environment))


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub({"mine": "me", "yours": "you"}).serving() as served:
        yield served


class Client:
    """A client that runs one block of code after the other, because a new process takes seconds.

    Args:
        endpoint: the server.
        home: the folder of its cache; it has no token.
    """

    def __init__(self, endpoint: str, home: Path) -> None:
        self.home, self.errors = home, home.with_name("errors.txt")
        with open(self.errors, "w") as errors:
            self.process = start(SERVE, endpoint, home, errors)

    def run(self, code: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(code), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, self.errors.read_text()[-3000:]
        return json.loads(answer)


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Start the client of all tests that need no environment of their own."""
    client = Client(hub.endpoint, tmp_path_factory.mktemp("client") / "home")
    yield client
    client.process.communicate()


@pytest.fixture(scope="module")
def pushed(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Push three models; return the folder with their logits and the client's results."""
    folder = tmp_path_factory.mktemp("pushed")
    edited = hub.repos["me/edited"] = Repo("me", private=False)
    edited.commit("main", {"README.md": plain_file(b"mine"), "notes.txt": plain_file(b"mine too")}, "by hand")
    hub.fail("POST", "/api/models/me/birds/branch/odd", 400)
    code = f"""
from huggingface_hub import HfApi
folder = {str(folder)!r}
for seed in (1, 2, 3):
    save_file(logits(make(seed)), f"{{folder}}/{{seed}}.safetensors")
result["first"] = make(1).push_to_hub("me/birds", commit_message="the first")
HfApi().create_tag("me/birds", tag="v1")
make(2).push_to_hub("me/birds", max_shard_size=100_000)
make(3).push_to_hub("me/birds", revision="experiment")
make(1).push_to_hub("secret", private=True)  # of the token's owner
make(1).push_to_hub("me/edited")
result["not mine"] = error_of(lambda: make(1).push_to_hub("you/birds"))
result["no token"] = error_of(lambda: make(1).push_to_hub("me/birds", token=False))
result["bad token"] = error_of(lambda: make(1).push_to_hub("me/birds", token="wrong"))
result["public"] = error_of(lambda: make(1).push_to_hub("me/birds", private=True))
result["no name"] = error_of(lambda: make(1).push_to_hub("a/b/c"))
result["no request"] = error_of(lambda: make(1).push_to_hub("me/birds", revision="refs/pr/9"))
result["refused"] = error_of(lambda: make(1).push_to_hub("me/birds", revision="odd"))
"""
    return folder, run(code, hub.endpoint, folder / "home", HF_TOKEN="mine")


def test_a_push_is_one_commit(hub: Hub, pushed: tuple[Path, dict[str, Any]]) -> None:
    birds = hub.repos["me/birds"]
    assert birds.messages == ["initial commit", "the first", *["Upload a model of c2f_zoo"] * 2]
    assert pushed[1]["first"] == f"{hub.endpoint}/me/birds/commit/{birds.tags['v1']}"
    whole = {"README.md", "config.json", ".gitattributes"}
    assert birds.commits[birds.tags["v1"]].keys() == whole | {"model.safetensors"}
    assert birds.commits[birds.branches["experiment"]].keys() == whole | {"model.safetensors"}
    shards = birds.commits[birds.branches["main"]].keys() - whole
    assert "model.safetensors" not in shards, "the shards replace the single file"
    assert "model.safetensors.index.json" in shards and len(shards) > 2
    assert not birds.private and hub.repos["me/secret"].private
    assert hub.leaked == [], "the file store receives no token"


def test_a_push_adds_a_missing_model_card(hub: Hub, pushed: tuple[Path, dict[str, Any]]) -> None:
    edited, secret = hub.repos["me/edited"], hub.repos["me/secret"]
    files = edited.commits[edited.branches["main"]]
    assert files["README.md"].data == b"mine"
    assert files.keys() == {"README.md", "notes.txt", "config.json", "model.safetensors"}
    card = secret.commits[secret.branches["main"]]["README.md"].data.decode()
    assert "Nothing was measured" in card and 'create_model("hf-hub:me/secret")' in card


def test_errors_of_push(hub: Hub, pushed: tuple[Path, dict[str, Any]]) -> None:
    _, result = pushed
    assert result["not mine"].startswith(
        f"PermissionError: 'you/birds': {hub.endpoint} denied access (403: me has no rights"
    )
    assert result["no token"].startswith(f"PermissionError: 'me/birds': {hub.endpoint} denied access (401: ")
    assert result["bad token"].startswith(
        f"PermissionError: 'me/birds': {hub.endpoint} denied access (401: Invalid cred"
    )
    for key in ("not mine", "no token", "bad token"):
        assert result[key].endswith("log in by `hf auth login`, set HF_TOKEN or pass token=")
    assert result["public"].startswith("ValueError: 'me/birds' is public; nothing was pushed.")
    assert result["no name"].startswith("ValueError: 'a/b/c' is not a repository name ('owner/model')")
    request = f"there is no such pull request (those that exist: {hub.endpoint}/me/birds/discussions) on {hub.endpoint}"
    assert result["no request"] == f"FileNotFoundError: 'me/birds' at 'refs/pr/9': {request}"
    refused = f"ValueError: 'me/birds' at 'odd': {hub.endpoint} refused the request (400: a fault on demand); check the"
    assert result["refused"].startswith(refused)
    assert all("\n" not in line for line in result.values())


def test_download_in_another_process(hub: Hub, pushed: tuple[Path, dict[str, Any]], client: Client) -> None:
    folder, _ = pushed
    code = f"""
folder, elsewhere = {str(folder)!r}, {str(client.home / "elsewhere")!r}
result["tag"] = same(C2FModel.from_pretrained("me/birds", revision="v1"), f"{{folder}}/1.safetensors")
main = create_model("hf-hub:me/birds", pretrained=True)
result["main"] = same(main, f"{{folder}}/2.safetensors")
result["config"] = main.config == make(2).config
result["branch"] = same(create_model("hf-hub:me/birds@experiment"), f"{{folder}}/3.safetensors")
result["token"] = same(C2FModel.from_pretrained("me/secret", token="mine"), f"{{folder}}/1.safetensors")
result["private"] = error_of(lambda: C2FModel.from_pretrained("me/secret", cache_dir=elsewhere))
result["another's"] = error_of(lambda: C2FModel.from_pretrained("me/secret", token="yours", cache_dir=elsewhere))
result["none"] = error_of(lambda: create_model("hf-hub:me/bird"))
result["revision"] = error_of(lambda: create_model("hf-hub:me/birds@v2"))
result["request"] = error_of(lambda: create_model("hf-hub:me/birds@refs/pr/9"))
result["not cached"] = error_of(lambda: C2FModel.from_pretrained("you/none", local_files_only=True))
result["cached"] = same(C2FModel.from_pretrained("me/birds", local_files_only=True), f"{{folder}}/2.safetensors")
"""
    result = client.run(code)
    for key in ("tag", "main", "config", "branch", "token", "cached"):
        assert result[key] is True, key
    hidden = f"there is no such model on {hub.endpoint}, or it is private and you may not see it"
    assert result["private"].startswith(f"FileNotFoundError: 'me/secret': {hidden}")
    assert result["another's"].startswith(f"FileNotFoundError: 'me/secret': {hidden}")
    assert result["none"].startswith(f"FileNotFoundError: 'me/bird': {hidden}")
    missing = f"FileNotFoundError: 'me/birds' at 'v2': there is no such branch, tag or commit on {hub.endpoint}"
    assert result["revision"] == missing
    assert result["request"].startswith("FileNotFoundError: 'me/birds' at 'refs/pr/9': there is no such pull request (")
    assert result["not cached"].startswith("FileNotFoundError: 'you/none' is not in the cache, and HF_HUB_OFFLINE or")
    assert all("\n" not in str(line) for line in result.values())
    assert hub.leaked == []

    offline = f"""
result["main"] = same(create_model("hf-hub:me/birds"), {str(folder / "2.safetensors")!r})
result["not cached"] = error_of(lambda: create_model("hf-hub:you/none"))
"""
    before = len(hub.requests)
    home, modes = client.home, {path: path.stat().st_mode for path in (client.home, *client.home.rglob("*"))}
    for path in modes:  # from here on, the cache may only be read
        path.chmod(0o555 if path.is_dir() else 0o444)
    there, gone = start(offline, hub.endpoint, home, HF_HUB_OFFLINE="1"), start(offline, "http://127.0.0.1:9", home)
    result = finish(there)
    assert result["main"] is True
    assert result["not cached"].startswith("FileNotFoundError: 'you/none' is not in the cache, and HF_HUB_OFFLINE or")
    assert len(hub.requests) == before
    result = finish(gone)
    assert result["main"] is True, "the cache is used without a network"
    unreachable = "ConnectionError: 'you/none' is not in the cache, and http://127.0.0.1:9 cannot be reached ("
    assert result["not cached"].startswith(unreachable)
    assert "\n" not in result["not cached"]

    online = """
result["main"] = error_of(lambda: create_model("hf-hub:me/birds"))
result["new"] = error_of(lambda: create_model("hf-hub:me/edited"))
"""
    result = client.run(online)
    for path, mode in modes.items():
        path.chmod(mode)
    assert result["main"] is None, "nothing is written for a model that is cached"
    assert result["new"].startswith("PermissionError: 'me/edited': the cache cannot be written (")
    assert result["new"].endswith("to choose another, or set HF_HUB_OFFLINE=1 to use what is cached")


def test_temporary_server_errors_are_retried(hub: Hub, client: Client, tmp_path: Path) -> None:
    for method, path in (
        ("POST", "/api/repos/create"),
        ("GET", "/api/models/me/stubborn"),
        ("PUT", "/store/"),
        ("POST", "/api/models/me/stubborn/commit/main"),
        ("GET", "/api/models/me/stubborn/revision/main"),
        ("HEAD", "/me/stubborn/resolve/.*/model.safetensors"),
    ):
        hub.fail(method, path, 500)
    hub.fail("GET", "/store/", "drop")
    hub.fail("GET", "/api/models/me/broken", 503, times=99)
    hub.fail("POST", "/api/models/me/cut/commit/main", "drop")
    before = len(hub.requests)
    code = f"""
hub._RETRY_DELAYS = (0.01,) * 4
large = make(2, dim=16384)  # the client writes 10 MiB at a time
large.push_to_hub("me/stubborn", token="mine")
save_file(logits(large), {str(tmp_path / "large.safetensors")!r})
result["same"] = same(create_model("hf-hub:me/stubborn"), {str(tmp_path / "large.safetensors")!r})
result["cut"] = error_of(lambda: make(2).push_to_hub("me/cut", token="mine"))
make(2).push_to_hub("me/cut", token="mine")
result["broken"] = error_of(lambda: make(2).push_to_hub("me/broken", token="mine"))
"""
    result = client.run(code)
    assert result["same"] is True
    size = len(hub.repos["me/stubborn"].commits[hub.repos["me/stubborn"].branches["main"]]["model.safetensors"].data)
    resumed = [int(request.split(" from ")[1]) for request in hub.requests[before:] if " from " in request]
    assert len(resumed) == 1 and 0 < resumed[0] <= size // 2, "the download is resumed"
    assert result["cut"].startswith(
        f"ConnectionError: 'me/cut': the connection to {hub.endpoint} failed or was closed ("
    )
    assert "config.json" in hub.repos["me/cut"].commits[hub.repos["me/cut"].branches["main"]], "a second push succeeds"
    assert result["broken"].startswith(f"ConnectionError: 'me/broken': {hub.endpoint} failed with 503 (")
    assert result["broken"].endswith("; try again later")
    assert all(fault.times == 0 for fault in hub.faults if fault.times < 50), "every fault was triggered"


def publish(hub: Hub, name: str, files: dict[str, Blob], extra: Sequence[str] = ()) -> None:
    hub.repos[name] = repo = Repo("you", private=False)
    repo.commit("main", files, "a malicious model")
    hub.store |= {blob.sha256: blob.data for blob in files.values() if blob.sha256}
    hub.extra_names[name] = list(extra)


def test_the_file_checks_run_after_server_errors(hub: Hub, pushed: tuple[Path, dict[str, Any]], client: Client) -> None:
    birds = hub.repos["me/birds"]
    whole = birds.commits[birds.tags["v1"]]
    publish(hub, "you/passing", whole, ["../../../evil.safetensors"])
    publish(hub, "you/staying", whole, ["../../../evil.safetensors"])
    publish(hub, "you/cached", whole)
    hub.fail("GET", "/api/models/you/passing$", 503)
    hub.fail("GET", "/api/models/you/staying$", 503, times=99)
    code = f"""
hub._RETRY_DELAYS = (0.01,) * 4
want = {str(pushed[0] / "1.safetensors")!r}
"""
    first = 'result["cached"] = same(create_model("hf-hub:you/cached"), want)'
    assert client.run(code + first)["cached"] is True
    hub.fail("GET", "/api/models/you/cached$", 503, times=99)
    code += """
for name in ("passing", "staying"):
    result[name] = error_of(lambda: create_model(f"hf-hub:you/{name}"))
"""
    result = client.run(code + first)
    assert result["passing"].startswith("ValueError: unsafe path '../../../evil.safetensors' in 'you/passing'")
    assert result["staying"].startswith(f"ConnectionError: 'you/staying': {hub.endpoint} failed with 503 (")
    assert result["cached"] is True, "the cache is used while the server fails"
    for name in ("passing", "staying"):
        assert not list(client.home.rglob(f"models--you--{name}/snapshots/*/*")), "none of its files is in the cache"


def test_only_files_of_the_model_are_downloaded(hub: Hub, pushed: tuple[Path, dict[str, Any]], client: Client) -> None:
    birds = hub.repos["me/birds"]
    whole, sharded = birds.commits[birds.tags["v1"]], birds.commits[birds.branches["main"]]
    others = {name: plain_file(b"junk") for name in ("sub/config.json", "model-x/y-of-3.safetensors")}
    shards = [name for name in sharded if name.endswith((".safetensors", ".json"))]
    publish(hub, "you/whole", {**whole, **others, "model-00001-of-00009.safetensors": lfs_file(b"junk")})
    publish(hub, "you/sharded", {**sharded, **others})
    code = f"""
folder = {str(pushed[0])!r}
for name, seed in (("whole", 1), ("sharded", 2)):
    for local in (False, True):
        model = C2FModel.from_pretrained(f"you/{{name}}", local_files_only=local)
        result[f"{{name}} {{local}}"] = same(model, f"{{folder}}/{{seed}}.safetensors")
"""
    result = client.run(code)
    assert len(result) == 4 and all(result.values()), result
    fetched = {
        name: sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if not path.is_dir())
        for name in ("whole", "sharded")
        for snapshot in client.home.rglob(f"models--you--{name}/snapshots/*")
        if snapshot.parent.name == "snapshots"
    }
    assert fetched == {"whole": ["config.json", "model.safetensors"], "sharded": sorted(shards)}


def test_a_missing_folder_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none"), "./none", "~/none", "../none", "a/b/c"):
        folder = os.path.expanduser(name) if name.startswith("~") else name
        with pytest.raises(FileNotFoundError, match=f"there is no folder {folder}; a model on the Hub is named"):
            C2FModel.from_pretrained(name)


def test_two_pushes_at_once(hub: Hub, pushed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    # Both start from the same commit: one is rejected (412), and retries from the new one.
    hub.fail("GET", "/api/models/me/both$", threading.Barrier(2), times=2)
    starting = [
        start(f'make({seed}).push_to_hub("me/both"{options})', hub.endpoint, tmp_path / str(seed), HF_TOKEN="mine")
        for seed, options in ((1, ""), (2, ", max_shard_size=100_000"))
    ]
    for pushing in starting:
        finish(pushing)
    both = hub.repos["me/both"]
    assert len(both.messages) == 3
    assert sum(request == "POST /api/models/me/both/commit/main" for request in hub.requests) == 3
    files = both.commits[both.branches["main"]]
    for name, blob in files.items():
        (tmp_path / name).write_bytes(blob.data)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = C2FModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        logits = model(x)
    last = 1 if "model.safetensors" in files else 2
    assert any("-of-" in name for name in files) == (last == 2), "all files are of the last push"
    for level, want in load_file(pushed[0] / f"{last}.safetensors").items():
        assert torch.equal(logits[level], want)


def test_a_killed_download_leaves_no_usable_files(
    hub: Hub, pushed: tuple[Path, dict[str, Any]], client: Client, tmp_path: Path
) -> None:
    hub.half_sent.clear()
    hub.released.clear()
    hub.fail("GET", "/store/", "hang")
    code = f"""
model = C2FModel.from_pretrained("me/birds", revision="v1", cache_dir={str(tmp_path / "cache")!r})
result["same"] = same(model, {str(pushed[0] / "1.safetensors")!r})
"""
    killed = start(code, hub.endpoint, tmp_path)
    assert hub.half_sent.wait(300)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    hub.released.set()
    assert list(tmp_path.rglob("*.incomplete")), "it was killed during the download"
    assert not list(tmp_path.rglob("snapshots/*/model.safetensors"))
    assert client.run(code)["same"] is True


def test_untrusted_repositories(hub: Hub, pushed: tuple[Path, dict[str, Any]], client: Client) -> None:
    birds = hub.repos["me/birds"]
    whole, sharded = birds.commits[birds.tags["v1"]], birds.commits[birds.branches["main"]]
    shard = next(name for name in sharded if "-of-" in name)
    index = json.loads(sharded["model.safetensors.index.json"].data)
    outside = {name: "../../other.safetensors" for name in index["weight_map"]}
    weights = whole["model.safetensors"].data
    repos = {
        "listing": whole,
        "nothing": {"README.md": whole["README.md"]},
        "large": whole | {"config.json": plain_file(b" " * (33 * 2**20))},
        "truncated": whole | {"model.safetensors": lfs_file(weights[:-100])},
        "pickle": {"config.json": whole["config.json"], "pytorch_model.bin": lfs_file(b"cos\nsystem\n")},
        "index": sharded | {"model.safetensors.index.json": plain_file(json.dumps({"weight_map": outside}).encode())},
        "shard": {name: blob for name, blob in sharded.items() if name != shard},
    }
    for name, files in repos.items():
        publish(hub, f"you/{name}", files)
    hub.extra_names["you/listing"] = ["../../../evil.safetensors"]
    code = f"""
for name in {list(repos)}:
    result[name] = error_of(lambda: create_model(f"hf-hub:you/{{name}}"))
"""
    result = client.run(code)
    listing = "ValueError: unsafe path '../../../evil.safetensors' in 'you/listing'"
    assert result["listing"].startswith(listing)
    assert result["nothing"].startswith("FileNotFoundError: 'you/nothing' has no config.json; it is not a model of")
    assert result["large"].startswith("ValueError: the config.json of 'you/large' is larger than")
    assert "model.safetensors is not a complete safetensors file" in result["truncated"]
    assert result["pickle"].startswith("FileNotFoundError: ") and "has no model.safetensors" in result["pickle"]
    assert "invalid shard name '../../other.safetensors' in" in result["index"]
    assert f"missing shard {shard} of model.safetensors.index.json" in result["shard"]
    fetched = {path.name for name in repos for path in client.home.rglob(f"models--you--{name}/snapshots/*/*")}
    assert "pytorch_model.bin" not in fetched and "README.md" not in fetched, "only needed files are downloaded"
    assert not list(client.home.rglob("*evil*"))
    assert not list(client.home.rglob("models--you--listing/snapshots/*/*")), "none is in the cache"
