"""Uploads to the Hugging Face Hub, and downloads to its local cache."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from c2f_zoo.config import MAX_CONFIG_BYTES
from c2f_zoo.io.files import is_read_only
from c2f_zoo.io.weights import (
    CALIBRATION_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    MAX_CALIBRATION_BYTES,
    MAX_INDEX_BYTES,
    SHARDS,
    WEIGHTS_FILE,
    is_plain,
)
from c2f_zoo.paths import expand

T = TypeVar("T")

# huggingface_hub's HTTP library, and its class of network errors, depend on the version.
_NETWORK_ERRORS: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
_RETRY_STATUS = (409, 412, 429, 500, 502, 503, 504)  # a concurrent push, too many requests, a server error
_RETRY_DELAYS = (0.5, 1, 2, 4)  # seconds


def split_revision(name: str) -> tuple[str, str | None]:
    """Split `"owner/model@revision"` into name and revision; the revision may be None.

    Examples:
        >>> split_revision("me/birds@v1.0"), split_revision("me/birds")
        (('me/birds', 'v1.0'), ('me/birds', None))
    """
    repo_id, _, revision = name.partition("@")
    return repo_id, revision or None


def full_name(repo_id: str, token: str | bool | None = None) -> str:
    """Return a repository's name as `owner/model`; the default owner is the token's.

    Raises:
        PermissionError: no owner is named, and the token is missing or invalid.
        ConnectionError: no owner is named, and the Hub cannot be reached.
    """
    if "/" in repo_id:
        return repo_id
    with _translate_errors(repo_id, None):
        return f"{HfApi(token=token).whoami()['name']}/{repo_id}"


def download(
    repo_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download a model's configuration, weights and calibration into the Hub's cache.

    Other files of the repository are not downloaded. The list of files is checked first; without a connection a cached
    model is used. huggingface_hub's environment variables apply: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`,
    `HF_HUB_OFFLINE`.

    Args:
        repo_id: `"owner/model"`.
        revision: a branch, tag or commit; None for `main`.
        token: an access token; None for the one of `hf auth login`, False for none.
        cache_dir: the cache folder; None for huggingface_hub's.
        local_files_only: use the cache only.

    Returns:
        The folder of one commit in the cache.

    Raises:
        FileNotFoundError: the repository or the revision does not exist, or is not in the cache of an offline client.
        PermissionError: the token is missing or has too few rights, or the cache cannot be written.
        ConnectionError: the Hub cannot be reached, or still fails after all retries.
        ValueError: the Hub refuses the request, or the repository lists a path outside of it or a file above its size
            limit.
    """

    def fetch(*patterns: str, local: bool = False) -> Path:
        where: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir and expand(cache_dir)}
        skip = ["*/*"]  # a * of allow_patterns matches a / too
        kept = list(patterns)
        return Path(
            snapshot_download(repo_id, **where, local_files_only=local, allow_patterns=kept, ignore_patterns=skip)
        )

    def cached() -> Path:
        files = CONFIG_FILE, CALIBRATION_FILE
        folder = fetch(*files, WEIGHTS_FILE, local=True)
        return folder if (folder / WEIGHTS_FILE).is_file() else fetch(*files, INDEX_FILE, SHARDS, local=True)

    api = HfApi(token=token)
    with _translate_errors(repo_id, revision):
        if local_files_only or constants.HF_HUB_OFFLINE:
            return cached()
        try:
            info = _retry(lambda: api.model_info(repo_id, revision=revision, files_metadata=True))
        except RevisionNotFoundError:
            raise
        except _NETWORK_ERRORS as network_error:
            try:
                return cached()
            except LocalEntryNotFoundError as error:
                if isinstance(network_error, HfHubHTTPError):
                    raise network_error from None
                raise error from network_error
        names = [glob.escape(name) for name in _model_files(repo_id, info)]
        return _retry(lambda: fetch(*names))


def download_config(repo_id: str, revision: str | None = None) -> Path:
    """Download the `config.json` of a model of timm, and return its path in the cache.

    Raises:
        FileNotFoundError: the repository, the revision or the file does not exist.
        PermissionError: the token is missing or has too few rights.
        ConnectionError: the Hub cannot be reached, or still fails after all retries.
    """
    path = _download_file(repo_id, CONFIG_FILE, revision)
    if path is None:
        raise FileNotFoundError(f"{repo_id!r} has no {CONFIG_FILE}; it is not a model of timm")
    return path


def download_weights(repo_id: str, revision: str | None = None) -> Path | None:
    """Download the `model.safetensors` of a model of timm, and return its path in the cache; None if it has none.

    Raises:
        FileNotFoundError: the repository or the revision does not exist.
        PermissionError: the token is missing or has too few rights, or the cache cannot be written.
        ConnectionError: the Hub cannot be reached, or still fails after all retries.
    """
    return _download_file(repo_id, WEIGHTS_FILE, revision)


def _download_file(repo_id: str, name: str, revision: str | None) -> Path | None:
    """Download a file, and return its path in the cache; None if the repository does not have it."""
    with _translate_errors(repo_id, revision):
        try:
            return Path(_retry(lambda: hf_hub_download(repo_id, name, revision=revision)))
        except LocalEntryNotFoundError:  # a kind of EntryNotFoundError
            raise
        except EntryNotFoundError:
            return None


def _model_files(repo_id: str, info: ModelInfo) -> list[str]:
    """Check the list of a repository's files and return the names of the model's."""
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    for name in sizes:
        if not is_plain(name):
            raise ValueError(f"unsafe path {name!r} in {repo_id!r}; nothing was downloaded")
    if CONFIG_FILE not in sizes:
        raise FileNotFoundError(f"{repo_id!r} has no {CONFIG_FILE}; it is not a model of c2f_zoo")
    limits = {CONFIG_FILE: MAX_CONFIG_BYTES, INDEX_FILE: MAX_INDEX_BYTES, CALIBRATION_FILE: MAX_CALIBRATION_BYTES}
    for name, limit in limits.items():
        if (sizes.get(name) or 0) > limit:
            raise ValueError(f"the {name} of {repo_id!r} is larger than {limit} bytes; nothing was downloaded")
    small = [CONFIG_FILE, *([CALIBRATION_FILE] if CALIBRATION_FILE in sizes else ())]
    if WEIGHTS_FILE in sizes:
        return [*small, WEIGHTS_FILE]
    shards = [name for name in sizes if "/" not in name and Path(name).match(SHARDS)]
    return [*small, *([INDEX_FILE] if INDEX_FILE in sizes else ()), *shards]


def push(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a model of c2f_zoo",
    keep: Sequence[str] = (),
) -> str:
    """Push the files of a folder to a repository on the Hub, in one commit.

    A missing repository is created. The same commit removes stale weights, e.g. shards of an earlier push. Of two
    concurrent pushes, the later one replaces all files of the earlier one.

    Args:
        folder: the folder; its subfolders are not pushed.
        repo_id: `"owner/model"`.
        private: whether a new repository is private; None for the owner's default.
        token: an access token; None for the one of `hf auth login`.
        revision: a branch, created from `main` if it is missing; None for `main`.
        commit_message: first line of the commit's message.
        keep: names of files that are not overwritten.

    Returns:
        The URL of the commit.

    Raises:
        PermissionError: the token is missing or has too few rights.
        ConnectionError: the Hub cannot be reached, or still fails after all retries.
        ValueError: the name is invalid, or the repository is public and `private` is true.
    """
    api = HfApi(token=token)

    def commit(repo_id: str) -> str:
        try:
            head = api.model_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            if str(revision).startswith("refs/"):  # only the Hub creates these
                raise
            api.create_branch(repo_id, branch=str(revision), exist_ok=True)
            head = api.model_info(repo_id, revision=revision)
        if private and not head.private:
            raise ValueError(
                f"{repo_id!r} is public; nothing was pushed. Make it private on the Hub, or choose another name"
            )
        changes = _changes(Path(folder), head, keep)
        # parent_commit refuses to mix the files of two pushes at once
        return api.create_commit(
            repo_id, changes, commit_message=commit_message, revision=revision, parent_commit=head.sha
        ).commit_url

    with _translate_errors(repo_id, revision):
        created = _retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        return _retry(lambda: commit(created.repo_id))


def _changes(folder: Path, head: ModelInfo, keep: Sequence[str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return the uploads of a folder's files and the deletions of stale weights."""
    present = {file.rfilename for file in head.siblings or ()}
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    of_model = (WEIGHTS_FILE, INDEX_FILE, CALIBRATION_FILE)
    stale = [name for name in present - files.keys() if name in of_model or Path(name).match(SHARDS)]
    added = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
        for name, path in files.items()
        if name not in keep or name not in present
    ]
    return [*added, *(CommitOperationDelete(path_in_repo=name) for name in sorted(stale))]


def _retry(request: Callable[[], T]) -> T:
    """Send a request; retry if the Hub is busy or another push came first."""
    for delay in _RETRY_DELAYS:
        try:
            return request()
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            if _status(error) not in _RETRY_STATUS:
                raise
            time.sleep(delay)
    return request()


def _status(error: BaseException | None) -> int:
    """Return the HTTP status of an error, 0 if it has none."""
    if isinstance(error, LocalEntryNotFoundError):  # huggingface_hub keeps the server's error as its cause
        error = error.__cause__
    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0


@contextmanager
def _translate_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Translate huggingface_hub's errors into built-in ones with short messages."""
    what = repr(repo_id) + (f" at {revision!r}" if revision else "")
    hub = constants.ENDPOINT
    log_in = "log in by `hf auth login`, set HF_TOKEN or pass token="
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a repository name ('owner/model'): {error}") from error
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"{what}: there is no token; {log_in}") from error
    except RevisionNotFoundError as error:
        kind = "branch, tag or commit"
        if (revision or "").startswith("refs/pr/"):
            kind = f"pull request (those that exist: {hub}/{repo_id}/discussions)"
        raise FileNotFoundError(f"{what}: there is no such {kind} on {hub}") from error
    except GatedRepoError as error:
        raise PermissionError(f"{what} is gated: ask for access on {hub}/{repo_id}, then {log_in}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{what}: there is no such model on {hub}, or it is private and you may not see it; {log_in}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise _not_cached(what, hub, error) from error
    except HfHubHTTPError as error:
        message, status = (error.server_message or str(error)).strip().split("\n")[0], _status(error)
        if status in (401, 403):
            raise PermissionError(f"{what}: {hub} denied access ({status}: {message}); {log_in}") from error
        if 400 <= status < 500 and status not in _RETRY_STATUS:
            raise ValueError(f"{what}: {hub} refused the request ({status}: {message}); check the name") from error
        raise ConnectionError(f"{what}: {hub} failed with {status} ({message}); try again later") from error
    except _NETWORK_ERRORS as error:
        if is_read_only(error):
            raise PermissionError(
                f"{what}: the cache cannot be written ({error}); set HF_HOME or pass cache_dir= to choose another, or "
                "set HF_HUB_OFFLINE=1 to use what is cached"
            ) from error
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) is not None:
            raise  # translated already, or an error of a local file
        raise ConnectionError(
            f"{what}: the connection to {hub} failed or was closed ({error}); try again later"
        ) from error


def _not_cached(what: str, hub: str, error: LocalEntryNotFoundError) -> OSError:
    """Return the error for a model that is neither in the cache nor available."""
    if error.__cause__ is None or constants.HF_HUB_OFFLINE:
        return FileNotFoundError(
            f"{what} is not in the cache, and HF_HUB_OFFLINE or local_files_only is set; load it once without them"
        )
    message = str(error.__cause__).strip().split("\n")[0]
    return ConnectionError(f"{what} is not in the cache, and {hub} cannot be reached ({message}); try again later")
