"""Names of splits, as data sets and people write them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from c2f_zoo.data.registry import SPLITS

_NAMES = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "tst"),
    "?": ("eval", "evaluation", "holdout", "heldout"),
}
_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}

UNCLEAR = "?"  # a split, but it may be "val" or "test"


def split_of(name: str) -> str:
    """Return the split that a name stands for, in any case: one of `SPLITS`, `UNCLEAR`, or "" if it is no split.

    Digits and words such as `set` do not matter.

    Examples:
        >>> [split_of(name) for name in ("Training", "train_mini", "val2017", "dev", "Test-Set", "eval", "bus")]
        ['train', 'train', 'val', 'val', 'test', '?', '']
    """
    letters = re.sub(r"[\W_\d]+", "", name.casefold())
    return _SPLIT_OF.get(letters, _SPLIT_OF.get(re.sub(r"(sets?|splits?|data|images?|imgs?|mini)+$", "", letters), ""))


def explain_unclear(name: str) -> str:
    """Return a message on a name for which `split_of` returns `UNCLEAR`."""
    return f"{name!r} may be the validation or the test set; rename it to 'val' or 'test'"


def has_several_splits(names: Iterable[str]) -> bool:
    """Return whether at least two of the splits are among these names, alone or beside the same other words.

    Examples:
        >>> has_several_splits(["cars_train", "cars_test"]), has_several_splits(["bullet train", "crash test"])
        (True, False)
    """
    splits: dict[tuple[str, ...], set[str]] = defaultdict(set)  # other words of a name -> splits
    for name in names:
        words = [name] if split_of(name) else re.findall(r"[^\W_]+", name.casefold())
        found = {split_of(word) for word in words}.intersection(SPLITS)
        splits[tuple(word for word in words if not split_of(word))] |= found
    return any(len(found) > 1 for found in splits.values())
