"""The class tree: levels, their classes, and the parent of each class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from c2f_zoo.hierarchy import datasets, reading
from c2f_zoo.hierarchy.paths import RAGGED, find_repeats
from c2f_zoo.registry import check_names, unknown_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Hierarchy:
    """A tree of classes with all leaves at the same depth.

    Labels are indices into a level's classes. Every class below the coarsest level has exactly one parent, and every
    class above the leaf level has at least one child. A branch that ends above the leaf level is stored with its last
    class repeated down to it, `Fruit > Banana > Banana`: a class is a repeat if it is the only child of a class of the
    same name, and nothing below has another name.

    Args:
        levels: names of the levels, coarse to fine, e.g. `("family", "genus", "species")`.
        classes: the class names of each level, in label order.
        parents: for each level but the coarsest, the label of each class's parent at the next coarser level.
        version: version of the tree, e.g. `"1.0"`; empty if unknown. Truncated trees and subtrees keep it.
        ragged: `"repeat"` treats repeats like other classes; `"stop"` leaves them out of predictions and metrics, so
            that a short branch ends at its last class. Labels and models are the same for both.

    Raises:
        ValueError: the tree is invalid; the message lists all faults.

    Examples:
        >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
        >>> tree.num_classes
        {'kind': 2, 'shape': 3}
        >>> tree.to_parent(torch.tensor([2, 0]), "kind")
        tensor([1, 0])
    """

    levels: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    parents: tuple[tuple[int, ...], ...]
    version: str = ""
    ragged: str = "repeat"

    def __post_init__(self) -> None:
        faults = _find_faults(self.levels, self.classes, self.parents)
        if faults:
            raise ValueError("invalid hierarchy: " + "; ".join(faults))
        check_names("value of ragged:", [self.ragged], RAGGED)

    @property
    def finest(self) -> str:
        """Name of the leaf level, the finest one."""
        return self.levels[-1]

    @property
    def num_classes(self) -> dict[str, int]:
        """Number of classes of each level, coarse to fine."""
        return {level: len(names) for level, names in zip(self.levels, self.classes, strict=True)}

    def depth(self, level: str) -> int:
        """Return the index of a level, counted from 0 for the coarsest.

        Raises:
            ValueError: the level is unknown; the message suggests close names.

        Examples:
            >>> load_hierarchy("cub").depth("genus")
            1
        """
        if level not in self.levels:
            raise unknown_name("level", level, self.levels)
        return self.levels.index(level)

    def class_names(self, level: str) -> tuple[str, ...]:
        """Return the names of a level's classes, in label order."""
        return self.classes[self.depth(level)]

    def parent_index(self, level: str, device: torch.device | str | None = None) -> torch.Tensor:
        """Return the parent of each class of a level as a tensor.

        The tensor is cached, one per device: do not modify it in place.

        Args:
            level: any level but the coarsest.
            device: the device of the tensor. Default: PyTorch's default device.

        Returns:
            int64 tensor (classes of the level,): labels of the next coarser level.

        Raises:
            ValueError: the level is unknown, or is the coarsest one.

        Examples:
            >>> load_hierarchy("fashion_mnist").parent_index("group")
            tensor([0, 0, 0, 0, 1, 1])
        """
        depth = self.depth(level)
        if depth == 0:
            raise ValueError(f"the classes of {level!r}, the coarsest level, have no parents")
        return self._cached_tensor("parent", level, self.parents[depth - 1], device)

    def ancestor_index(self, level: str, device: torch.device | str | None = None) -> torch.Tensor:
        """Return the ancestor of each leaf class at a level as a tensor.

        The tensor is cached, one per device: do not modify it in place.

        Args:
            level: the level of the ancestors; at the leaf level each class is its own ancestor.
            device: the device of the tensor. Default: PyTorch's default device.

        Returns:
            int64 tensor (leaf classes,): labels of `level`.

        Raises:
            ValueError: the level is unknown.

        Examples:
            >>> load_hierarchy("fashion_mnist").ancestor_index("division")
            tensor([0, 0, 0, 0, 0, 1, 0, 1, 1, 1])
        """
        return self._cached_tensor("ancestor", level, self.ancestor_labels[self.depth(level)], device)

    def to_parent(self, leaf_labels: torch.Tensor, level: str) -> torch.Tensor:
        """Return the labels of the ancestors of leaf labels at a level.

        Args:
            leaf_labels: integer tensor of any shape, values in `[0, num_classes[finest])`.
            level: the level of the ancestors; the leaf level returns the labels unchanged.

        Returns:
            int64 tensor of the same shape, on the same device.

        Raises:
            ValueError: a label lies outside the tree, or the level is unknown.
        """
        return self.ancestor_index(level, leaf_labels.device)[self._check_labels(leaf_labels)]

    def ancestors(self, leaf_labels: torch.Tensor) -> torch.Tensor:
        """Return the path of each leaf label: the label at every level.

        Args:
            leaf_labels: integer tensor of any shape (...), values in `[0, num_classes[finest])`.

        Returns:
            int64 tensor (..., levels): the labels, coarse to fine.

        Raises:
            ValueError: a label lies outside the tree.

        Examples:
            >>> load_hierarchy("fashion_mnist").ancestors(torch.tensor([0, 9]))  # T-shirt, ankle boot
            tensor([[0, 0, 0],
                    [1, 4, 9]])
        """
        import torch

        labels = self._check_labels(leaf_labels)
        return torch.stack([self.ancestor_index(level, labels.device)[labels] for level in self.levels], dim=-1)

    @cached_property
    def ancestor_labels(self) -> tuple[tuple[int, ...], ...]:
        """For each level, the label of every leaf class's ancestor.

        Examples:
            >>> tree = Hierarchy(("kind", "shape"), (("round", "edged"), ("disc", "ring", "box")), ((0, 0, 1),))
            >>> tree.ancestor_labels
            ((0, 0, 1), (0, 1, 2))
        """
        labels = [tuple(range(len(self.classes[-1])))]
        for above in reversed(self.parents):
            labels.insert(0, tuple(above[label] for label in labels[0]))
        return tuple(labels)

    @cached_property
    def repeats(self) -> tuple[frozenset[int], ...]:
        """For each level, the labels of the classes that repeat their parent.

        Examples:
            >>> rows = [("Fruit", "Apple", "Gala"), ("Fruit", "Banana", "Banana")]
            >>> Hierarchy.from_rows(("kind", "genus", "cultivar"), rows).repeats
            (frozenset(), frozenset(), frozenset({1}))
        """
        return find_repeats(self.classes, self.parents)

    @property
    def left_out(self) -> tuple[frozenset[int], ...]:
        """For each level, the labels that predictions and metrics leave out: `repeats` if `ragged` is `"stop"`."""
        return self.repeats if self.ragged == "stop" else (frozenset(),) * len(self.levels)

    def cut_repeats(self, labels: torch.Tensor) -> torch.Tensor:
        """Replace the labels of repeats by -1, if `ragged` is `"stop"`.

        Args:
            labels: integer labels (..., levels), coarse to fine; -1 where unknown. Finer levels may be missing.

        Returns:
            The labels, of the same shape; unchanged if `ragged` is `"repeat"`.

        Examples:
            >>> rows = [("Fruit", "Apple", "Gala"), ("Fruit", "Banana")]
            >>> tree = Hierarchy.from_rows(("kind", "genus", "cultivar"), rows, ragged="stop")
            >>> tree.cut_repeats(torch.tensor([[0, 0, 0], [0, 1, 1]]))
            tensor([[ 0,  0,  0],
                    [ 0,  1, -1]])
        """
        import torch

        if not any(self.left_out):
            return labels
        columns = [labels[..., depth] for depth in range(labels.shape[-1])]
        for depth, column in enumerate(columns):
            left_out = sorted(self.left_out[depth])
            columns[depth] = column.masked_fill(torch.isin(column, column.new_tensor(left_out)), -1)
        return torch.stack(columns, dim=-1)

    def lca_height(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return the heights of the lowest common ancestors of leaf labels.

        The height (Bertinetto et al., CVPR 2020) is 0 for the same class, 1 for siblings, and so on; for classes
        without a common ancestor it is the number of levels, the height of a root above the coarsest level.

        Args:
            a: integer tensor of leaf labels.
            b: integer tensor of leaf labels; the two shapes are broadcast.

        Returns:
            int64 tensor, values in `[0, number of levels]`.

        Raises:
            ValueError: a label lies outside the tree.

        Examples:
            >>> load_hierarchy("fashion_mnist").lca_height(torch.tensor(0), torch.tensor([0, 2, 3, 9]))
            tensor([0, 1, 2, 3])
        """
        shared = self.ancestors(a) == self.ancestors(b)
        return len(self.levels) - shared.sum(dim=-1)

    def truncate(self, level: str) -> Hierarchy:
        """Return the tree truncated at a level; labels do not change.

        The result is cached: each call returns the same object, and the leaf level returns this tree.

        Raises:
            ValueError: the level is unknown.

        Examples:
            >>> load_hierarchy("cub").truncate("genus").num_classes
            {'family': 36, 'genus': 113}
        """
        depth = self.depth(level)
        if level == self.finest:
            return self
        if level not in self._truncated:
            parts = self.levels[: depth + 1], self.classes[: depth + 1], self.parents[:depth]
            tree = self._truncated[level] = Hierarchy(*parts, self.version, self.ragged)
            tree.__dict__["repeats"] = self.repeats[: depth + 1]  # a class may repeat its parent, but end lower here
        return self._truncated[level]

    def path(self, leaf_label: int) -> tuple[str, ...]:
        """Return the class names from the coarsest level down to a leaf class.

        Raises:
            ValueError: the label lies outside the tree.
        """
        if not 0 <= leaf_label < len(self.classes[-1]):
            raise self._outside_error(leaf_label)
        return tuple(
            names[labels[leaf_label]] for names, labels in zip(self.classes, self.ancestor_labels, strict=True)
        )

    def subtree(self, leaf_classes: Iterable[str]) -> Hierarchy:
        """Return the subtree of some leaf classes and their ancestors, in the same order.

        Raises:
            ValueError: a class is not in the tree.
        """
        wanted = set(leaf_classes)
        unknown = wanted.difference(self.classes[-1])
        if unknown:
            raise unknown_name(self.finest, min(unknown), self.classes[-1])
        paths = [("", self.path(label)) for label, name in enumerate(self.classes[-1]) if name in wanted]
        kept = [{path[depth] for _, path in paths} for depth in range(len(self.levels))]
        classes = [[name for name in names if name in kept[depth]] for depth, names in enumerate(self.classes)]
        return Hierarchy(*reading.build_fields(self.levels, paths, classes), self.version, self.ragged)

    @classmethod
    def from_rows(cls, levels: Sequence[str], rows: Iterable[Sequence[str]], ragged: str = "repeat") -> Hierarchy:
        """Build a tree from rows: the path of each leaf class, coarse to fine.

        Labels follow the order in which classes first appear. A row may end above the leaf level. Several classes of a
        level with the same name get their parent's name in brackets. Both are said in a warning.

        Args:
            levels: names of the levels, coarse to fine.
            rows: the paths.
            ragged: treatment of branches that end above the leaf level, see `Hierarchy`.

        Raises:
            ValueError: the rows are not a tree; the message lists every fault with its row.
        """
        return cls(*reading.read_rows(levels, rows), ragged=ragged)

    @classmethod
    def from_csv(cls, path: str | Path, ragged: str = "repeat") -> Hierarchy:
        """Read a UTF-8 CSV file with a row for each leaf class.

        The header names the levels, coarse to fine; a row is the path of a leaf class. Labels follow the order in which
        classes first appear. The last cells of a row may be empty: the branch ends there. Several classes of a level
        with the same name get their parent's name in brackets. Both are said in a warning.

        Args:
            path: the file.
            ragged: treatment of branches that end above the leaf level, see `Hierarchy`.

        Raises:
            ValueError: the file is not a tree; the message lists every fault with its line.

        Examples:
            >>> _ = Path("tree.csv").write_text("kind,shape\\nround,disc\\nround,ring\\nedged,box\\n")
            >>> Hierarchy.from_csv("tree.csv").num_classes
            {'kind': 2, 'shape': 3}
            >>> _ = Path("tree.csv").write_text("kind,shape\\nround,disc\\n,ring\\nround,disc\\n")
            >>> try:
            ...     Hierarchy.from_csv("tree.csv")
            ... except ValueError as error:
            ...     print(error)
            invalid hierarchy in tree.csv:
              line 3: kind is empty
              line 4: shape 'disc' is already in line 2
        """
        return cls(*reading.read_csv(path), ragged=ragged)

    @classmethod
    def from_parents(cls, path: str | Path, levels: Sequence[str], ragged: str = "repeat") -> Hierarchy:
        """Read a UTF-8 CSV file with a row for each class and its parent.

        The header is `child,parent`, and there is a row for each class of every level. The parent of a class of the
        coarsest level is empty. Labels follow the order of the rows. A class without children may be at any level: the
        branch ends there, which is said in a warning. A name with several parents stands for several classes; each gets
        its parent's name in brackets, and its children must name it so: `Ficus carica,Ficus (Moraceae)`. A class that
        has its parent's name needs another name, or `from_csv`.

        Args:
            path: the file.
            levels: names of the levels, coarse to fine.
            ragged: treatment of branches that end above the leaf level, see `Hierarchy`.

        Raises:
            ValueError: the file is not a tree of that many levels; the message lists every fault with its line.

        Examples:
            >>> lines = ["child,parent", "round,", "edged,", "disc,round", "box,edged", "ring,round"]
            >>> _ = Path("tree.csv").write_text("\\n".join(lines))
            >>> Hierarchy.from_parents("tree.csv", ("kind", "shape")).classes
            (('round', 'edged'), ('disc', 'box', 'ring'))
        """
        return cls(*reading.read_parents(path, levels), ragged=ragged)

    @classmethod
    def from_folders(cls, folder: str | Path, levels: Sequence[str] | None = None, ragged: str = "repeat") -> Hierarchy:
        """Read nested folders such as `family/genus/species/*.jpg`.

        Each folder is a class. Labels follow the order of the sorted paths. Hidden files, hidden folders, service
        folders such as `@eaDir` and files next to folders are ignored. No file is opened. Names are in Unicode's form
        NFC. A branch ends at a folder without subfolders, at any level. Several classes of a level with the same name
        get their parent's name in brackets. Both are said in a warning.

        Args:
            folder: the root, which contains the folders of the coarsest classes.
            levels: names of the levels, coarse to fine. Default: the last of kingdom, phylum, class, order, family,
                genus and species; `level_1`, `level_2`, ... for more than 7 levels.
            ragged: treatment of branches that end above the leaf level, see `Hierarchy`.

        Raises:
            OSError: the folder does not exist.
            ValueError: the folders are not a tree, or one is empty; the message lists every fault with its folder.

        Examples:
            >>> for name in ("round/disc", "round/ring", "edged/box"):
            ...     Path("shapes", name).mkdir(parents=True)
            ...     Path("shapes", name, "1.jpg").touch()
            >>> Hierarchy.from_folders("shapes", ("kind", "shape")).classes
            (('edged', 'round'), ('box', 'disc', 'ring'))
        """
        return cls(*reading.read_folders(folder, levels), ragged=ragged)

    @classmethod
    def from_paths(
        cls, paths: Iterable[str | PurePath], levels: Sequence[str] | None = None, ragged: str = "repeat"
    ) -> Hierarchy:
        """Build a tree from file paths, as `from_folders` does from files.

        The files need not exist.

        Args:
            paths: paths relative to the root, which contains the folders of the coarsest classes.
            levels: names of the levels, coarse to fine. Default: as in `from_folders`.
            ragged: treatment of branches that end above the leaf level, see `Hierarchy`.

        Raises:
            ValueError: the paths are not a tree; the message lists every fault.

        Examples:
            >>> tree = Hierarchy.from_paths(["round/disc/1.jpg", "round/disc/2.jpg", "edged/box/3.jpg"])
            >>> tree.levels, tree.classes
            (('genus', 'species'), (('edged', 'round'), ('box', 'disc')))
        """
        return cls(*reading.read_paths(paths, levels), ragged=ragged)

    @classmethod
    def from_inaturalist(cls, categories: Iterable[str]) -> Hierarchy:
        """Build the tree of iNaturalist 2021 from its category names.

        The levels are kingdom, phylum, class, order, family, genus and species. Labels of species follow the order of
        the categories; a species is named by genus and epithet. A name with several parents, such as a genus of birds
        and of mints, gets the parent's name in brackets.

        Args:
            categories: names of the folders, e.g. `all_categories` of `torchvision.datasets.INaturalist`.

        Raises:
            ValueError: a name is not a category; the message lists every fault.

        Examples:
            >>> birds = "00000_Animalia_Chordata_Aves_Passeriformes_Prunellidae_Prunella_modularis"
            >>> mints = "00001_Plantae_Tracheophyta_Magnoliopsida_Lamiales_Lamiaceae_Prunella_vulgaris"
            >>> tree = Hierarchy.from_inaturalist([birds, mints])
            >>> tree.class_names("genus")
            ('Prunella (Prunellidae)', 'Prunella (Lamiaceae)')
            >>> tree.class_names("species")
            ('Prunella modularis', 'Prunella vulgaris')
        """
        return cls(*datasets.read_inaturalist(categories))

    @classmethod
    def from_aircraft(cls, folder: str | Path) -> Hierarchy:
        """Read the tree of FGVC-Aircraft (Maji et al., arXiv:1306.5151).

        The levels are manufacturer, family and variant. Parents follow from the labels of the images at the three
        levels. Labels follow the order of each level's list.

        Args:
            folder: `fgvc-aircraft-2013b/data`, or a folder with `manufacturers.txt`, `families.txt`, `variants.txt`
                and `images_{manufacturer,family,variant}_trainval.txt`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the lists are not a tree; the message lists every fault with its file and line.
        """
        return cls(*datasets.read_aircraft(folder))

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as lists and strings for `json.dumps`; see `from_dict`."""
        return {
            "version": self.version,
            "ragged": self.ragged,
            "levels": list(self.levels),
            "classes": [list(names) for names in self.classes],
            "parents": [list(labels) for labels in self.parents],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Hierarchy:
        """Build a tree from the output of `to_dict`.

        Raises:
            ValueError: a key is missing or unexpected, or the tree is invalid.
        """
        expected = {"levels", "classes", "parents"}
        if set(data) - {"version", "ragged"} != expected:
            may = "and may have 'version' and 'ragged'"
            raise ValueError(f"a hierarchy has the keys {sorted(expected)} {may}, not {sorted(data)}")
        return cls(
            tuple(data["levels"]),
            tuple(tuple(names) for names in data["classes"]),
            tuple(tuple(labels) for labels in data["parents"]),
            str(data.get("version", "")),
            str(data.get("ragged", "repeat")),
        )

    def _outside_error(self, leaf_label: int) -> ValueError:
        count = len(self.classes[-1])
        return ValueError(f"label {leaf_label} is outside the tree: {self.finest} has {count} classes (0..{count - 1})")

    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in fields(self)}  # without the caches below
        if self.repeats != find_repeats(self.classes, self.parents):  # truncated: they depend on what was below
            state["repeats"] = self.repeats
        return state

    @cached_property
    def _truncated(self) -> dict[str, Hierarchy]:
        return {}

    @cached_property
    def _tensors(self) -> dict[tuple[str, str, torch.device], torch.Tensor]:
        return {}

    def _cached_tensor(
        self, kind: str, level: str, labels: Sequence[int], device: torch.device | str | None
    ) -> torch.Tensor:
        import torch

        where = torch.get_default_device() if device is None else torch.device(device)
        if torch.compiler.is_compiling():  # a tensor of a traced graph must not outlive it
            return torch.tensor(labels, dtype=torch.long, device=where)
        key = kind, level, where
        if key not in self._tensors:
            with torch.inference_mode(False):  # autograd does not support tensors created in inference mode
                tensor = torch.tensor(labels, dtype=torch.long, device=where)
            if type(tensor) is not torch.Tensor:  # a fake tensor belongs to its mode
                return tensor
            self._tensors[key] = tensor
        return self._tensors[key]

    def _check_labels(self, leaf_labels: torch.Tensor) -> torch.Tensor:
        """Return leaf labels as int64.

        Raises:
            ValueError: a label lies outside the tree.
        """
        labels = leaf_labels.long()  # uint8 would compare with the number of classes modulo 256
        outside = (labels < 0) | (labels >= len(self.classes[-1]))
        if outside.any():
            raise self._outside_error(int(labels[outside].flatten()[0]))
        return labels


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _find_faults(
    levels: Sequence[str], classes: Sequence[Sequence[str]], parents: Sequence[Sequence[int]]
) -> list[str]:
    if not levels or len(classes) != len(levels) or len(parents) != len(levels) - 1:
        return [
            f"{len(levels)} levels need {len(levels)} lists of classes and {max(len(levels) - 1, 0)} lists of parents, "
            f"not {len(classes)} and {len(parents)}"
        ]
    faults = ["a level has an empty name"] * any(not name.strip() for name in levels)
    # Names of levels are names of options, columns and files.
    faults += [f"level {name!r} contains control characters; rename it" for name in levels if _CONTROL.search(name)]
    for level, names in zip(levels, classes, strict=True):
        faults += [f"{level} has no classes"] * (not names)
        faults += [f"{level} has a class with an empty name"] * any(not name.strip() for name in names)
    for kind, names in (("level", levels), *zip(levels, classes, strict=True)):
        faults += [f"{kind} {name!r} has surrounding white space" for name in names if name.strip() not in ("", name)]
        faults += [f"{kind} {name!r} is named twice" for name, count in Counter(names).items() if count > 1]
    for depth, labels in enumerate(parents):
        above, level, names = classes[depth], levels[depth + 1], classes[depth + 1]
        if len(labels) != len(names):
            faults.append(f"{level} has {len(names)} classes but {len(labels)} parents")
        faults += [
            f"{level} {name!r} is an orphan: its parent {label} is not one of the {len(above)} {levels[depth]} labels"
            for name, label in zip(names, labels, strict=False)
            if not 0 <= label < len(above)
        ]
        used = set(labels)
        faults += [f"{levels[depth]} {name!r} has no {level}" for label, name in enumerate(above) if label not in used]
    return faults
