"""Trees whose branches differ in depth, and classes that share a name."""

from __future__ import annotations

import copy
import math
import pickle
import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import SMALL
from PIL import Image
from typer.testing import CliRunner

from c2f_zoo import Hierarchy, Predictor, cli, create_dataset, create_model
from c2f_zoo.config import ModelConfig
from c2f_zoo.data import labels_of
from c2f_zoo.data.check import check_images, list_images
from c2f_zoo.evaluation.scoring import Predictions, accuracy_rows, prediction_rows
from c2f_zoo.hierarchy import draw_text, open_hierarchy
from c2f_zoo.hierarchy.matching import labels_by_path, labels_by_suffix
from c2f_zoo.io.card import model_card
from c2f_zoo.metrics import tree_report
from c2f_zoo.training.setup import check_labels
from c2f_zoo.training.unreadable import check_readable

LEVELS = ("kind", "genus", "cultivar")
ROWS = [("Fruit", "Apple", "Gala"), ("Fruit", "Apple", "Cox"), ("Fruit", "Banana"), ("Nut",)]
FULL = Hierarchy(
    LEVELS,
    (("Fruit", "Nut"), ("Apple", "Banana", "Nut"), ("Gala", "Cox", "Banana", "Nut")),
    ((0, 0, 1), (0, 0, 1, 2)),
)
FIGS = [("Moraceae", "Ficus", "carica"), ("Ficidae", "Ficus", "variegata"), ("Ficidae", "Thalassocyon", "bonus")]
pytestmark = pytest.mark.filterwarnings("ignore:.*(branches end above|have the name of another):UserWarning")


def write_images(root: Path, *folders: str) -> Path:
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for name in "01":
            Image.new("RGB", (40, 30), (9 * number, 99, 9 * int(name))).save(root / folder / f"{name}.png")
    return root


class TestReading:
    def test_every_door_repeats_the_last_class(self, tmp_path: Path) -> None:
        (tmp_path / "cells.csv").write_text("\n".join(map(",".join, [LEVELS, *ROWS])))
        (tmp_path / "empty.csv").write_text(
            "kind,genus,cultivar\nFruit,Apple,Gala\nFruit,Apple,Cox\nFruit,Banana,\nNut,,\n"
        )
        lines = ["child,parent", "Fruit,", "Nut,", "Apple,Fruit", "Banana,Fruit", "Gala,Apple", "Cox,Apple"]
        (tmp_path / "parents.csv").write_text("\n".join(lines))
        folders = ["/".join(row) for row in ROWS]
        sorted_tree = Hierarchy.from_folders(write_images(tmp_path / "tree", *folders), LEVELS)
        assert Hierarchy.from_rows(LEVELS, ROWS) == FULL
        assert Hierarchy.from_csv(tmp_path / "cells.csv") == Hierarchy.from_csv(tmp_path / "empty.csv") == FULL
        parents = Hierarchy.from_parents(tmp_path / "parents.csv", LEVELS)
        assert {parents.path(label) for label in range(4)} == {FULL.path(label) for label in range(4)}
        assert parents.classes == (("Fruit", "Nut"), ("Nut", "Apple", "Banana"), ("Nut", "Banana", "Gala", "Cox"))
        assert {sorted_tree.path(label) for label in range(4)} == {FULL.path(label) for label in range(4)}
        assert Hierarchy.from_paths([f"{folder}/1.png" for folder in folders], LEVELS) == sorted_tree

    def test_the_count_and_an_example_are_said(self) -> None:
        said = (
            r"the rows: 2 of 4 branches end above 'cultivar' .* e\.g\. 'Fruit > Banana' beside 'Fruit > Apple > Gala'"
        )
        with pytest.warns(UserWarning, match=said):
            Hierarchy.from_rows(LEVELS, ROWS)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Hierarchy.from_rows(LEVELS, ROWS[:2])

    @pytest.mark.parametrize(
        ("rows", "fault"),
        [
            ([*ROWS, ("Fruit", "Apple")], "row 5: genus 'Apple' ends here but has classes below it (row 1)"),
            ([*ROWS, ("Nut", "")], "row 5: kind 'Nut' is already in row 4"),
            ([*ROWS, ("Nut", "", "Hazel")], "row 5: genus is empty"),
            ([*ROWS, ("Fruit", "Apple", "Cox", "Red")], "row 5: the path 'Fruit > Apple > Cox > Red' has 4 names"),
            ([*ROWS, ("", "")], "row 5: kind is empty"),
            (ROWS[2:], "the longest path has 2 names, the tree has 3 levels"),
        ],
    )
    def test_faults(self, rows: list[tuple[str, ...]], fault: str) -> None:
        with pytest.raises(ValueError) as error:
            Hierarchy.from_rows(LEVELS, rows)
        assert str(error.value).splitlines()[1].strip().startswith(fault)

    def test_ragged_is_stored_and_validated(self, tmp_path: Path) -> None:
        stop = Hierarchy.from_rows(LEVELS, ROWS, ragged="stop")
        assert (stop.classes, stop.parents) == (FULL.classes, FULL.parents)
        assert Hierarchy.from_dict(stop.to_dict()) == stop != FULL
        older = {key: value for key, value in FULL.to_dict().items() if key != "ragged"}
        assert Hierarchy.from_dict(older).ragged == "repeat"
        assert stop.truncate("genus").ragged == stop.subtree(["Gala"]).ragged == "stop"
        with pytest.raises(ValueError, match="unknown value of ragged: 'stopp'; did you mean 'stop'"):
            Hierarchy.from_rows(LEVELS, ROWS, ragged="stopp")
        (tmp_path / "tree.csv").write_text("\n".join(map(",".join, [LEVELS, *ROWS])))
        assert open_hierarchy(tmp_path / "tree.csv", ragged="stop") == stop
        assert open_hierarchy(stop).ragged == "stop"


class TestRepeats:
    def test_repeats_by_hand(self) -> None:
        assert FULL.repeats == (set(), {2}, {2, 3})

    def test_a_class_that_ends_lower_is_no_repeat(self) -> None:
        # "Spitfire" has a family of its name, but it ends at "Mk I"; of "Apple" there are two.
        rows = [("Spitfire", "Spitfire", "Mk I"), ("Apple", "Apple", "Gala"), ("Apple", "Pear", "Pear")]
        tree = Hierarchy.from_rows(LEVELS, rows)
        assert tree.repeats == (set(), set(), {2})
        truncated = tree.truncate("genus")
        for copied in (truncated, copy.deepcopy(truncated), pickle.loads(pickle.dumps(truncated))):
            assert copied.repeats == (set(), set())

    def test_labels_of_repeats_are_cut_only_on_request(self) -> None:
        labels = FULL.ancestors(torch.arange(4))
        assert FULL.cut_repeats(labels) is labels
        cut = replace(FULL, ragged="stop").cut_repeats(torch.cat([labels, torch.tensor([[0, 1, -1]])]))
        assert cut.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, -1], [1, -1, -1], [0, 1, -1]]


def logs(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


class TestMetrics:
    # Four images: Gala (right), Banana (right), Nut taken for Gala, Cox taken for Banana.
    TARGET = FULL.ancestors(torch.tensor([0, 2, 3, 1]))
    PREDICTED = FULL.ancestors(torch.tensor([0, 2, 0, 2]))

    def report(self, ragged: str) -> dict[str, float]:
        tree = replace(FULL, ragged=ragged)
        scores = {}
        for depth, (level, count) in enumerate(tree.num_classes.items()):
            scores[level] = logs(torch.eye(count)[self.PREDICTED[:, depth]].mul(0.9).add(0.01).tolist())
        return tree_report(scores, self.TARGET, tree, "joint")

    @pytest.mark.parametrize(
        ("name", "repeat", "stop"),
        [
            # Correct by level: kind 3 of 4 (Nut is not Fruit), genus 2 of 4, cultivar 2 of 4. With stop, Nut has no
            # genus, Nut and Banana have no cultivar: genus 2 of 3, cultivar 1 of 2 (Gala right, Cox wrong).
            ("kind/accuracy", 3 / 4, 3 / 4),
            ("genus/accuracy", 2 / 4, 2 / 3),
            ("cultivar/accuracy", 2 / 4, 1 / 2),
            ("genus/top1", 2 / 4, 2 / 3),
            ("cultivar/top1", 2 / 4, 1 / 2),
            # Recalls of cultivars: Gala 1, Cox 0, as repeats Banana 1, Nut 0; of genera: Apple 1/2, Banana 1, Nut 0.
            ("cultivar/balanced_accuracy", 1 / 2, 1 / 2),
            ("genus/balanced_accuracy", 1 / 2, 3 / 4),
            ("genus/macro_accuracy", 1 / 2, 3 / 4),
            # Numbers of classes as weights: 2, 3, 4; without repeats 2, 2, 2.
            ("wap", (2 * 3 / 4 + 3 * 2 / 4 + 4 * 2 / 4) / 9, (3 / 4 + 2 / 3 + 1 / 2) / 3),
            # |P & T|: Gala 3, Banana 3, Nut 0, Cox 1 (Fruit); without repeats 3, 2, 0, 1 with |P| = 3, 2, 3, 2 and
            # |T| = 3, 2, 1, 3.
            ("hierarchical_precision", 7 / 12, 6 / 10),
            ("hierarchical_recall", 7 / 12, 6 / 9),
            ("macro_hierarchical_precision", (1 + 1 + 0 + 1 / 3) / 4, (1 + 1 + 0 + 1 / 2) / 4),
            # A path is right or wrong as a whole, and distances are those of the complete tree.
            ("fpa", 2 / 4, 2 / 4),
            ("lca_distance", (0 + 0 + 3 + 2) / 4, (0 + 0 + 3 + 2) / 4),
            ("hd@1", (0 + 0 + 3 + 2) / 4, (0 + 0 + 3 + 2) / 4),
            ("tice", 0, 0),
        ],
    )
    def test_by_hand(self, name: str, repeat: float, stop: float) -> None:
        assert self.report("repeat")[name] == pytest.approx(repeat)
        assert self.report("stop")[name] == pytest.approx(stop)

    def test_scores_of_a_run(self) -> None:
        labels = {None: {level: self.PREDICTED[:, depth] for depth, level in enumerate(LEVELS)}}
        tree, readable = replace(FULL, ragged="stop"), torch.ones(4, dtype=torch.bool)
        predictions = Predictions(tree, torch.arange(4), readable, self.TARGET, labels)
        own: dict[str, int | None] = dict.fromkeys(LEVELS)
        rows = accuracy_rows(predictions, own)
        assert [(row["accuracy"], row["images"]) for row in rows] == [(3 / 4, 4), (pytest.approx(2 / 3), 3), (1 / 2, 2)]
        cells = [[row[column] for column in row if column != "index"] for row in prediction_rows(predictions, own)]
        assert cells[1] == ["Fruit", "Fruit", "Banana", "Banana", "", ""]
        assert cells[2] == ["Nut", "Fruit", "", "Apple", "", "Gala"]
        assert cells[3] == ["Fruit", "Fruit", "Apple", "Banana", "Cox", ""]
        whole = list(prediction_rows(replace(predictions, hierarchy=FULL), own))
        assert (whole[2]["cultivar"], whole[3]["predicted_cultivar"]) == ("Nut", "Banana")


class TestModels:
    def model(self, tree: Hierarchy):
        model = create_model("mlph", hierarchy=tree, **SMALL)  # type: ignore[arg-type]
        with torch.no_grad():
            for level, probabilities in {
                "kind": [0.9, 0.1], "genus": [0.3, 0.6, 0.1], "cultivar": [0.2, 0.1, 0.5, 0.2]
            }.items():  # fmt: skip
                classifier = model.head.get_classifier(level)
                classifier.weight.zero_()
                classifier.bias.copy_(torch.tensor(probabilities).log())
        return model

    @pytest.mark.slow
    def test_a_prediction_repeats_or_stops(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (64, 64))
        model = self.model(FULL)
        assert str(Predictor(model)(image)) == "Fruit (0.90) > Banana (0.60) > Banana (0.50)"
        model.save_pretrained(tmp_path / "model")
        stop = replace(FULL, ragged="stop")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no weight is lost
            stopping = create_model(f"local-dir:{tmp_path / 'model'}", hierarchy=stop)
        assert str(Predictor(stopping)(image)) == "Fruit (0.90) > Banana (0.60)"
        stopping.save_pretrained(tmp_path / "stop")
        loaded = create_model(f"local-dir:{tmp_path / 'stop'}")
        assert loaded.hierarchy == stop
        assert str(Predictor(loaded)(image)) == "Fruit (0.90) > Banana (0.60)"

    @pytest.mark.slow
    def test_only_ragged_changes_levels_and_resolutions_stay(self, tmp_path: Path) -> None:
        chosen = {"levels": ["genus", "cultivar"], "resolutions": {"genus": 16}}
        create_model("mlph", hierarchy=FULL, **SMALL, **chosen).save_pretrained(tmp_path)  # type: ignore[arg-type]
        config = create_model(f"local-dir:{tmp_path}", hierarchy=replace(FULL, ragged="stop")).config
        assert (config.levels, config.resolutions) == (("genus", "cultivar"), {"genus": 16})
        with pytest.raises(ValueError, match="unknown value of ragged"):
            ModelConfig.from_dict({**config.to_dict(), "hierarchy": {**FULL.to_dict(), "ragged": "x"}})

    def test_drawings_and_the_card_stop_too(self) -> None:
        stop = replace(FULL, ragged="stop")
        drawn = ["Fruit (3)", "├── Apple (2)", "│   ├── Gala", "│   └── Cox", "└── Banana", "Nut"]
        assert draw_text(stop).splitlines() == drawn
        assert draw_text(FULL).splitlines()[4:] == [
            "└── Banana (1)", "    └── Banana", "Nut (1)", "└── Nut (1)", "    └── Nut"
        ]  # fmt: skip
        config = create_model("mlph", hierarchy=stop, **SMALL).config  # type: ignore[arg-type]
        text = model_card(config, "me/fruit")
        assert "\n".join(drawn) in text and "Branches end at different levels" in text
        assert "different levels" not in model_card(replace(config, hierarchy=FULL), "me/fruit")


class TestDatasets:
    def test_folders_of_different_depth(self, tmp_path: Path) -> None:
        root = write_images(tmp_path / "data", *("/".join(row) for row in ROWS))
        dataset = create_dataset("folder", "train", root=root, levels=LEVELS, test_fraction=0.5, ragged="stop")
        assert dataset.hierarchy.ragged == "stop"
        paths = [dataset.hierarchy.path(target) for target in dataset.targets]
        assert paths == [
            ("Fruit", "Apple", "Cox"), ("Fruit", "Apple", "Gala"), ("Fruit", "Banana", "Banana"), ("Nut",) * 3
        ]  # fmt: skip

    def test_a_folder_with_the_name_of_the_one_above(self, tmp_path: Path) -> None:
        root = write_images(tmp_path, "Gorilla/Gorilla", "Pan/Pan/Pan paniscus", "Pongo/Pongo")
        dataset = create_dataset("folder", "train", root=root, test_fraction=0.5)
        assert dataset.labels is None, "every image has a leaf label"
        names = [dataset.hierarchy.path(target)[-1] for target in dataset.targets]
        assert names == ["Gorilla", "Pan paniscus", "Pongo"]

    @pytest.mark.parametrize("seed", range(6))
    def test_each_folder_of_a_random_tree_is_a_leaf_class(self, tmp_path: Path, seed: int) -> None:
        draw = random.Random(seed)
        paths = {tuple(draw.choice("abcd") for _ in range(draw.randint(1, 4))) for _ in range(9)}
        leaves = [path for path in sorted(paths) if not any(path != q and path == q[: len(path)] for q in paths)]
        tree = Hierarchy.from_rows([f"level {depth}" for depth in range(max(map(len, leaves)))], leaves)
        labels = labels_by_path(tree)
        assert [labels[path][-1] for path in leaves] == list(range(len(leaves)))

    @pytest.mark.parametrize("folder", ["Fruit/Banana", "Banana"])
    def test_a_short_branch_of_a_given_tree_has_its_leaf_label(self, tmp_path: Path, folder: str) -> None:
        root = write_images(tmp_path, folder, "Apple", "Fruit/Apple/Gala")
        dataset = create_dataset("folder", "train", root=root, hierarchy=FULL, test_fraction=0.5)
        assert sorted(labels_of(dataset).tolist()) == [[0, 0, -1], [0, 0, 0], [0, 1, 2]]

    def test_a_list(self, tmp_path: Path) -> None:
        write_images(tmp_path / "images", "a")
        (tmp_path / "list.csv").write_text("path,label,split\nimages/a/0.png,Banana,train\nimages/a/1.png,Nut,test\n")
        (tmp_path / "tree.csv").write_text("\n".join(map(",".join, [LEVELS, *ROWS])))
        chosen = {"file": tmp_path / "list.csv", "hierarchy": tmp_path / "tree.csv", "ragged": "stop"}
        dataset = create_dataset("csv", "train", **chosen)
        assert (dataset.hierarchy, dataset.targets) == (replace(FULL, ragged="stop"), [2])

    @pytest.mark.parametrize(("ragged", "counts"), [("repeat", "4 4 4"), ("stop", "2 2 2")])
    def test_the_check_counts_without_repeats(self, tmp_path: Path, ragged: str, counts: str) -> None:
        root = write_images(tmp_path, *("/".join(row) for row in ROWS))
        command = ["data", "check", str(root), "--levels", ",".join(LEVELS), "--ragged", ragged]
        result = CliRunner().invoke(cli.app, [*command, "--test-fraction", "0.5"])
        assert result.exit_code == 0
        (row,) = [line for line in result.output.splitlines() if line.startswith("│ cultivar")]
        classes, trained, images = counts.split()
        assert row.replace("│", " ").split() == ["cultivar", classes, trained, str(2 * int(images))]

    def test_the_listing_names_what_it_changed(self, tmp_path: Path) -> None:
        root = write_images(tmp_path, *("/".join(row) for row in (*ROWS, ("Nut2", "Apple"))))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            listing = list_images(root, levels=LEVELS)
        assert dict(listing.warnings) == {
            **{key: items for key, items in listing.warnings.items() if not items},
            "branches that end above 'cultivar', their last class repeated down to it": [
                "Fruit/Banana", "Nut", "Nut2/Apple"
            ],
            "classes with the name of another class, called by their parent's name too": [
                "genus Apple (Fruit)", "genus Apple (Nut2)"
            ],
        }  # fmt: skip
        notes = create_dataset("folder", "train", root=root, levels=LEVELS, test_fraction=0.5).notes
        counts = ["to it: 3 (Fruit/Banana, Nut, Nut2/Apple)", "too: 2 (genus Apple (Fruit), genus Apple (Nut2))"]
        assert [note.endswith(count) for note, count in zip(notes, counts, strict=True)] == [True, True]

    def test_a_split_of_short_branches_only_has_no_label_below(self, tmp_path: Path) -> None:
        write_images(tmp_path / "train", *("/".join(row) for row in ROWS))
        write_images(tmp_path / "test", "Fruit/Banana", "Nut")
        for ragged, missing in (("repeat", []), ("stop", ["cultivar in 'test'"])):
            report = check_images(list_images(tmp_path, levels=LEVELS, ragged=ragged))
            assert [item for items in report.errors.values() for item in items] == missing
        dataset = create_dataset("folder", "test", root=tmp_path, levels=LEVELS, ragged="stop")
        model = create_model("mlph", hierarchy=dataset.hierarchy, **SMALL)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no test image has a label at 'cultivar'"):
            check_labels(labels_of(dataset), model, "test")
        with pytest.raises(ValueError, match="no readable test image has a label at 'cultivar'"):
            check_readable({"test": (dataset, range(len(dataset)))}, model, "skip", Accelerator(cpu=True))


class TestSharedNames:
    def test_a_qualified_name_that_exists_is_refused(self) -> None:
        rows = [("p", "a"), ("q", "a"), ("q", "a (p)")]
        with pytest.raises(ValueError, match=r"shape 'a \(p\)' would be the name of two classes, below 'p' and 'q'"):
            Hierarchy.from_rows(("kind", "shape"), rows)

    @pytest.mark.parametrize(
        "rows", [[("p", "a"), ("p", "a (p)"), ("q", "a")], [("p", "a (p)"), ("q", "a"), ("p", "a")]]
    )
    def test_nor_do_two_classes_of_one_parent_become_one(self, rows: list[tuple[str, ...]]) -> None:
        with pytest.raises(ValueError, match=r"shape 'a \(p\)' would be the name of two classes, both below 'p'"):
            Hierarchy.from_rows(("kind", "shape"), rows)
        deeper = [(*row, f"leaf {number}") for number, row in enumerate(rows)]
        with pytest.raises(ValueError, match=r"shape 'a \(p\)' would be the name of two classes, both below 'p'"):
            Hierarchy.from_rows(("kind", "shape", "size"), deeper)

    def test_names_get_their_parent_at_any_level(self) -> None:
        tree = Hierarchy.from_rows(("family", "genus", "species"), FIGS)
        assert tree.classes[1:] == (
            ("Ficus (Moraceae)", "Ficus (Ficidae)", "Thalassocyon"), ("carica", "variegata", "bonus")
        )  # fmt: skip
        cars = Hierarchy.from_rows(("maker", "body"), [("Audi", "Coupe"), ("BMW", "Coupe"), ("BMW", "Van")])
        assert cars.classes[1] == ("Coupe (Audi)", "Coupe (BMW)", "Van")

    def test_they_are_said_with_their_count(self) -> None:
        said = r"the rows: 2 classes have the name of another class .* brackets, e\.g\. genus 'Ficus \(Moraceae\)'"
        with pytest.warns(UserWarning, match=said):
            Hierarchy.from_rows(("family", "genus", "species"), FIGS)

    def test_a_short_branch_beside_a_class_of_its_name(self) -> None:
        tree = Hierarchy.from_rows(("family", "genus"), [("Ficus",), ("Moraceae", "Ficus")])
        assert tree.classes[1] == ("Ficus", "Ficus (Moraceae)")
        assert tree.repeats == (set(), {0})

    def test_files_of_parents_name_the_parent(self, tmp_path: Path) -> None:
        lines = ["child,parent", "Moraceae,", "Ficidae,", "Ficus,Moraceae", "Ficus,Ficidae"]
        figs = ["carica,Ficus (Moraceae)", "variegata,Ficus (Ficidae)"]
        (tmp_path / "tree.csv").write_text("\n".join([*lines, *figs]))
        tree = Hierarchy.from_parents(tmp_path / "tree.csv", ("family", "genus", "species"))
        assert tree == Hierarchy.from_rows(("family", "genus", "species"), FIGS[:2])
        (tmp_path / "tree.csv").write_text("\n".join([*lines, "carica,Ficus", figs[1]]))
        written = "write 'Ficus (Moraceae)' or 'Ficus (Ficidae)'"
        with pytest.raises(ValueError) as error:
            Hierarchy.from_parents(tmp_path / "tree.csv", ("family", "genus", "species"))
        assert str(error.value).splitlines()[1:] == [
            f"  line 6: the parent 'Ficus' of 'carica' is the name of 2 classes; {written}"
        ]

    def test_folders_keep_their_names_on_disk(self, tmp_path: Path) -> None:
        root = write_images(tmp_path, *map("/".join, FIGS))
        dataset = create_dataset("folder", "train", root=root, test_fraction=0.5)
        tree = dataset.hierarchy
        assert [tree.path(target) for target in dataset.targets] == [
            ("Ficidae", "Ficus (Ficidae)", "variegata"),
            ("Ficidae", "Thalassocyon", "bonus"),
            ("Moraceae", "Ficus (Moraceae)", "carica"),
        ]
        same = create_dataset("folder", "train", root=root, hierarchy=tree, test_fraction=0.5)
        assert same.targets == dataset.targets

    def test_a_name_of_several_classes_needs_its_parent(self) -> None:
        labels = labels_by_suffix(Hierarchy.from_rows(("family", "genus", "species"), FIGS))
        assert ("Ficus",) not in labels
        assert labels[("Moraceae", "Ficus")] == labels[("Ficus (Moraceae)",)] == (0, 0, -1)
        assert labels[("Ficus", "carica")] == labels[("carica",)] == (0, 0, 0)

    def test_a_list_that_does_not_name_the_parent(self, tmp_path: Path) -> None:
        write_images(tmp_path, "a")
        (tmp_path / "list.csv").write_text("path,label,split\na/0.png,Ficus,train\na/1.png,carica,test\n")
        tree = Hierarchy.from_rows(("family", "genus", "species"), FIGS)
        with pytest.raises(ValueError, match=r"did you mean 'Ficus \(Ficidae\)' or 'Ficus \(Moraceae\)'"):
            create_dataset("csv", "train", file=tmp_path / "list.csv", hierarchy=tree)


def test_metrics_without_an_image_at_a_level_are_nan() -> None:
    tree = replace(FULL, ragged="stop")
    scores = {level: torch.zeros(1, count) for level, count in tree.num_classes.items()}
    report = tree_report(scores, tree.ancestors(torch.tensor([3])), tree, "joint")
    assert math.isnan(report["cultivar/accuracy"]) and report["kind/accuracy"] == 0
