"""Push a finished run of train.py to the Hugging Face Hub, with a model card of what was measured.

    python recipes/push_to_hub.py runs/critters-1 me/critters --license apache-2.0
    python recipes/push_to_hub.py runs/critters-1 me/critters --license apache-2.0 --dry_run to-look-at

What goes up: the best epoch's model, its card, test.csv, and curves.png. Checkpoints stay here.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from jsonargparse import auto_cli

from c2f_zoo.io.card import model_card, read_run
from c2f_zoo.io.hub import full_name, push
from c2f_zoo.zoo.create import load_model

TAKEN_ALONG = ("test.csv", "curves.png")


def main(
    run: str,
    repo: str,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload a run of c2f_zoo",
    max_shard_size: str = "5GB",
    dry_run: str | None = None,
) -> None:
    """Pushes a run to the Hub.

    Args:
        run: folder of a finished run of train.py.
        repo: the repository, `owner/model`, or `model` of the token's owner (not in a dry run); it is made where it
            is missing.
        license: an identifier of https://huggingface.co/docs/hub/repositories-licenses, e.g. `apache-2.0`; it is
            required, and never guessed.
        private: make a new repository private.
        revision: a branch, made where it is missing; without it `main`.
        commit_message: the commit's first line.
        max_shard_size: size of a file of weights at most.
        dry_run: folder to write what would be pushed into; nothing is pushed.
    """
    if license is None or not license.strip():
        raise ValueError("name the licence under which the model is given away, e.g. --license apache-2.0")
    if dry_run is not None:
        folder = Path(dry_run)
        if "/" not in repo:
            raise ValueError(f"a dry run asks no server who the token's owner is; name the owner too: 'owner/{repo}'")
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; choose another folder for --dry_run")
        write(folder, run, at(repo, revision), license, max_shard_size)
        print(f"nothing was pushed; this would be, to {repo}:")
        for path in sorted(folder.iterdir()):
            print(f"  {path} ({path.stat().st_size} bytes)")
        return
    repo = full_name(repo)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, run, at(repo, revision), license, max_shard_size)
        address = push(folder, repo, private=private or None, revision=revision, commit_message=commit_message)
    print(f"pushed: {address}")
    print(f"try: create_model('hf-hub:{at(repo, revision)}')")


def at(repo: str, revision: str | None) -> str:
    """The name by which what is pushed is found again."""
    return f"{repo}@{revision}" if revision else repo


def write(folder: Path, run: str, name: str, license: str, max_shard_size: str) -> None:
    """Writes what is to be pushed into a folder."""
    measured, model = read_run(run), load_model(run)
    model.save_pretrained(folder, max_shard_size)
    text = model_card(model.config, name, license, measured)
    (folder / "README.md").write_text(text, encoding="utf-8")
    for name in TAKEN_ALONG:
        if (Path(run) / name).is_file():
            shutil.copy(Path(run) / name, folder / name)


if __name__ == "__main__":
    try:
        auto_cli(main)
    except (ValueError, OSError) as error:
        raise SystemExit(f"push_to_hub.py: {error}") from error
