"""Going up to the Hugging Face Hub and coming down from it, by huggingface_hub: its cache, tokens and endpoint."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from c2f_zoo.config import MAX_CONFIG_BYTES
from c2f_zoo.io.weights import CONFIG_FILE, INDEX_FILE, MAX_INDEX_BYTES, SHARDS, WEIGHTS_FILE, is_plain

T = TypeVar("T")

# The client's HTTP library differs between its versions, and so does the class of "no network".
_NO_ANSWER: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
# Another push came first; too many requests; the server's trouble.
_WORTH_ANOTHER_TRY = (409, 412, 429, 500, 502, 503, 504)
_WAITS = (0.5, 1, 2, 4)  # seconds


def split_revision(name: str) -> tuple[str, str | None]:
    """Splits `"owner/model@revision"`; without a revision it is None.

    Examples:
        >>> split_revision("me/birds@v1.0"), split_revision("me/birds")
        (('me/birds', 'v1.0'), ('me/birds', None))
    """
    repo_id, _, revision = name.partition("@")
    return repo_id, revision or None


def full_name(repo_id: str, token: str | bool | None = None) -> str:
    """The name of a repository with its owner's, who is the token's owner where none is named.

    Raises:
        PermissionError: no owner is named, and the token is missing or not valid.
        ConnectionError: no owner is named, and the Hub does not answer.
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
    """Fetches a model's configuration and weights, and nothing else, into huggingface_hub's cache.

    Nothing is fetched before the repository's list of files was seen; where the server does not give it, the cache
    serves.

    The environment counts as it does for huggingface_hub: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`.

    Args:
        repo_id: `"owner/model"`.
        revision: a branch, tag or commit; None for `main`.
        token: an access token; None for the one that is logged in, False for none.
        cache_dir: the cache; None for huggingface_hub's.
        local_files_only: ask no server.

    Returns:
        The folder in the cache, of one commit.

    Raises:
        FileNotFoundError: there is no such repository or revision, or it is not in the cache and may not be asked for.
        PermissionError: the token is missing or not enough.
        ConnectionError: the Hub does not answer, or in vain.
        ValueError: the repository's list of files has a path that leads out of it, or a file too large for what it is.
    """

    def fetch(patterns: Sequence[str], local: bool) -> Path:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],  # a * of patterns goes over a / too
        )
        return Path(folder)

    def cached() -> Path:
        folder = fetch([CONFIG_FILE, WEIGHTS_FILE], local=True)
        return folder if (folder / WEIGHTS_FILE).is_file() else fetch([CONFIG_FILE, INDEX_FILE, SHARDS], local=True)

    api = HfApi(token=token)
    with _translate_errors(repo_id, revision):
        if local_files_only or constants.HF_HUB_OFFLINE:
            return cached()
        try:
            info = _retry(lambda: api.model_info(repo_id, revision=revision, files_metadata=True))
        except RevisionNotFoundError:
            raise
        except _NO_ANSWER as trouble:
            try:
                return cached()
            except LocalEntryNotFoundError as error:
                if isinstance(trouble, HfHubHTTPError):
                    raise trouble from None
                raise error from trouble
        names = [glob.escape(name) for name in _names_of(repo_id, info)]
        return _retry(lambda: fetch(names, local=False))


def _names_of(repo_id: str, info: ModelInfo) -> list[str]:
    """The files to fetch of a repository, whose list of files is one that a model has."""
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    for name in sizes:
        if not is_plain(name):
            raise ValueError(f"{repo_id!r} lists the file {name!r}, whose path leads out of it; nothing was downloaded")
    if CONFIG_FILE not in sizes:
        raise FileNotFoundError(f"{repo_id!r} holds no {CONFIG_FILE}; it is no model that save_pretrained wrote")
    for name, most in ((CONFIG_FILE, MAX_CONFIG_BYTES), (INDEX_FILE, MAX_INDEX_BYTES)):
        if (sizes.get(name) or 0) > most:
            raise ValueError(f"the {name} of {repo_id!r} is larger than {most} bytes; nothing was downloaded")
    if WEIGHTS_FILE in sizes:
        return [CONFIG_FILE, WEIGHTS_FILE]
    shards = [name for name in sizes if "/" not in name and Path(name).match(SHARDS)]
    return [CONFIG_FILE, *([INDEX_FILE] if INDEX_FILE in sizes else ()), *shards]


def push(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a model of c2f_zoo",
    keep: Sequence[str] = (),
) -> str:
    """Puts the files of a folder into a repository on the Hub, in one commit; it is made where it is missing.

    Weights that are in the repository and not in the folder (shards of an earlier push) are removed by the same commit.
    If someone else pushes at the same time, the later commit replaces the earlier one's files as a whole.

    Args:
        folder: its files are pushed, its folders are not.
        repo_id: `"owner/model"`.
        private: whether a new repository is private; None for the owner's default.
        token: an access token; None for the one that is logged in.
        revision: a branch, made from `main` where it is missing; None for `main`.
        commit_message: the commit's first line.
        keep: names of files that stay as they are where the repository has them.

    Returns:
        The commit's address.

    Raises:
        PermissionError: the token is missing or not enough.
        ConnectionError: the Hub does not answer, or in vain.
        ValueError: the name is none of a repository, or it is public already and was to be private.
    """
    api = HfApi(token=token)
    with _translate_errors(repo_id, revision):
        made = _retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        return _retry(lambda: _commit(api, Path(folder), made.repo_id, private, revision, commit_message, keep))


def _commit(
    api: HfApi,
    folder: Path,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    commit_message: str,
    keep: Sequence[str],
) -> str:
    try:
        head = api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=str(revision), exist_ok=True)
        head = api.model_info(repo_id, revision=revision)
    if private and not head.private:
        raise ValueError(f"{repo_id!r} is public; nothing was pushed. Make it private on the Hub, or name another")
    there = {file.rfilename for file in head.siblings or ()}
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    stale = [name for name in there - files.keys() if name in (WEIGHTS_FILE, INDEX_FILE) or Path(name).match(SHARDS)]
    added = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
        for name, path in files.items()
        if name not in keep or name not in there
    ]
    done = api.create_commit(
        repo_id,
        [*added, *(CommitOperationDelete(path_in_repo=name) for name in sorted(stale))],
        commit_message=commit_message,
        revision=revision,
        parent_commit=head.sha,  # or the files of two pushes at once would be mixed
    )
    return done.commit_url


def _retry(ask: Callable[[], T]) -> T:
    """Asks again, after a while, where the Hub says that it is busy or that another push came first."""
    for wait in _WAITS:
        try:
            return ask()
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            if _status(error) not in _WORTH_ANOTHER_TRY:
                raise
            time.sleep(wait)
    return ask()


def _status(error: BaseException | None) -> int:
    """What the server answered, 0 where it did not; huggingface_hub may say it as the cause of "not in the cache"."""
    if isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__
    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0


@contextmanager
def _translate_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Says in one line, which names the repository and the way out, what the client says in several."""
    what = repr(repo_id) + (f" at {revision!r}" if revision else "")
    hub = constants.ENDPOINT
    log_in = "log in by `hf auth login`, set HF_TOKEN or pass token="
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository, 'owner/model': {error}") from error
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"{what}: there is no token; {log_in}") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{what}: there is no such branch, tag or commit on {hub}") from error
    except GatedRepoError as error:
        raise PermissionError(f"{what} is gated: ask for access on {hub}/{repo_id}, then {log_in}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{what}: there is no such model on {hub}, or it is private and you may not see it; {log_in}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise _not_here(what, hub, error) from error
    except HfHubHTTPError as error:
        said, status = (error.server_message or str(error)).strip().split("\n")[0], _status(error)
        if status in (401, 403):
            raise PermissionError(f"{what}: {hub} refuses ({status}: {said}); {log_in}") from error
        raise ConnectionError(f"{what}: {hub} answers {status} ({said}); try again later") from error
    except _NO_ANSWER as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) is not None:
            raise  # said here already, or of this machine's files
        raise ConnectionError(f"{what}: {hub} cannot be reached, or broke off ({error}); try again later") from error


def _not_here(what: str, hub: str, error: LocalEntryNotFoundError) -> OSError:
    """The error for what is not wholly in the cache, while nobody answers or may be asked."""
    if error.__cause__ is None or constants.HF_HUB_OFFLINE:
        return FileNotFoundError(
            f"{what} is not in the cache, and no server may be asked (HF_HUB_OFFLINE or local_files_only); load it "
            "once without"
        )
    said = str(error.__cause__).strip().split("\n")[0]
    return ConnectionError(f"{what} is not in the cache, and {hub} cannot be reached ({said}); try again later")
