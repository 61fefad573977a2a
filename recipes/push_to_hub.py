"""Push a finished run of train.py to the Hugging Face Hub, with a model card.

    python recipes/push_to_hub.py runs/critters-1 me/critters --license apache-2.0
    python recipes/push_to_hub.py runs/critters-1 me/critters --license apache-2.0 --dry_run preview

The best epoch's model, its card, test.csv and curves.png are pushed, but no checkpoints.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from jsonargparse import auto_cli

from c2f_zoo.io.card import model_card, read_run
from c2f_zoo.io.hub import full_name, push
from c2f_zoo.model import C2FModel
from c2f_zoo.paths import expand
from c2f_zoo.training.launch import recipe_errors

RESULT_FILES = ("test.csv", "curves.png")


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
    """Push a run to the Hub.

    Args:
        run: folder of a finished run of train.py.
        repo: the repository, `owner/model`, or `model` for the token's owner (not in a dry run); it is created if it
            does not exist.
        license: the model's licence, required: an identifier of
            https://huggingface.co/docs/hub/repositories-licenses, e.g. `apache-2.0`.
        private: make a new repository private.
        revision: a branch; it is created if it does not exist. Default: `main`.
        commit_message: the commit's first line.
        max_shard_size: maximum size of a weights file.
        dry_run: write the files to this folder instead of pushing them.
    """
    run = str(expand(run))
    if license is None or not license.strip():
        raise ValueError("the model has no licence; name one, e.g. --license apache-2.0")
    if dry_run is not None:
        folder = expand(dry_run)
        if "/" not in repo:
            raise ValueError(f"a dry run does not ask the Hub for the token's owner; name the owner: 'owner/{repo}'")
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; choose another folder for --dry_run")
        write_files(folder, run, with_revision(repo, revision), license, max_shard_size)
        print(f"nothing was pushed; these files would be pushed to {repo}:")
        for path in sorted(folder.iterdir()):
            print(f"  {path} ({path.stat().st_size} bytes)")
        return
    repo = full_name(repo)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(folder, run, with_revision(repo, revision), license, max_shard_size)
        address = push(folder, repo, private=private or None, revision=revision, commit_message=commit_message)
    print(f"pushed: {address}")
    print(f"try: create_model('hf-hub:{with_revision(repo, revision)}')")


def with_revision(repo: str, revision: str | None) -> str:
    """Return the name of the pushed model for `create_model`."""
    return f"{repo}@{revision}" if revision else repo


def write_files(folder: Path, run: str, name: str, license: str, max_shard_size: str) -> None:
    """Write the files to push: the model, its card and the run's results."""
    results, model = read_run(run), C2FModel.from_pretrained(run)
    model.save_pretrained(folder, max_shard_size)
    text = model_card(model.config, name, license, results, model.calibration)
    (folder / "README.md").write_text(text, encoding="utf-8")
    for file in RESULT_FILES:
        if (Path(run) / file).is_file():
            shutil.copy(Path(run) / file, folder / file)


if __name__ == "__main__":
    with recipe_errors("push_to_hub.py"):
        auto_cli(main)
