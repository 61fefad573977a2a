import json
from pathlib import Path

import pytest
import torch

from c2f_zoo import Hierarchy, list_hierarchies, load_hierarchy, register_hierarchy
from c2f_zoo.hierarchy import HIERARCHIES

ROWS = [("Birds", "Gulls", "Ivory gull"), ("Birds", "Gulls", "Herring gull"), ("Birds", "Jays", "Blue jay")]
ROWS += [("Beasts", "Cats", "Lynx")]
LEVELS = ("class", "group", "species")


@pytest.fixture
def tree() -> Hierarchy:
    return Hierarchy.from_rows(LEVELS, ROWS)


def test_rows_become_levels_classes_and_parents(tree: Hierarchy) -> None:
    assert tree.levels == LEVELS
    assert tree.classes == (
        ("Birds", "Beasts"),
        ("Gulls", "Jays", "Cats"),
        ("Ivory gull", "Herring gull", "Blue jay", "Lynx"),
    )
    assert tree.parents == ((0, 0, 1), (0, 0, 1, 2))
    assert tree.num_classes == {"class": 2, "group": 3, "species": 4}
    assert tree.finest == "species"
    assert tree.class_names("group") == ("Gulls", "Jays", "Cats")
    assert tree.path(3) == ("Beasts", "Cats", "Lynx")


def test_to_parent_by_hand(tree: Hierarchy) -> None:
    fine = torch.tensor([[3, 0], [2, 1]], dtype=torch.int32)
    assert tree.to_parent(fine, "group").tolist() == [[2, 0], [1, 0]]
    assert tree.to_parent(fine, "class").tolist() == [[1, 0], [0, 0]]
    assert tree.to_parent(fine, "species").tolist() == fine.tolist()
    assert tree.to_parent(torch.tensor([], dtype=torch.long), "class").tolist() == []


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_outside_the_tree_is_named(tree: Hierarchy, label: int) -> None:
    with pytest.raises(ValueError, match=rf"label {label} is outside the tree: species has 4 classes"):
        tree.to_parent(torch.tensor([0, label]), "class")


def test_an_unknown_level_is_named(tree: Hierarchy) -> None:
    with pytest.raises(ValueError, match=r"unknown level 'specie'; did you mean 'species'\?"):
        tree.class_names("specie")


@pytest.mark.parametrize("name", list_hierarchies())
def test_shipped_trees_are_whole(name: str) -> None:
    tree = load_hierarchy(name)
    assert Hierarchy.from_dict(json.loads(json.dumps(tree.to_dict()))) == tree
    fine = torch.arange(tree.num_classes[tree.finest])
    for level in tree.levels:
        names = tree.class_names(level)
        ancestors = tree.to_parent(fine, level)
        assert set(ancestors.tolist()) == set(range(len(names))), "every class has a finest class below it"
        for label in (0, len(fine) - 1):
            assert tree.path(label)[tree.levels.index(level)] == names[ancestors[label]]


def test_sizes_are_those_published() -> None:
    # Huo et al. 2019, Table 2 (published), and Seo & Shin 2019.
    assert list(load_hierarchy("cub").num_classes.values()) == [36, 113, 200]
    assert list(load_hierarchy("cars").num_classes.values()) == [14, 113, 196]
    assert list(load_hierarchy("fashion_mnist").num_classes.values()) == [2, 6, 10]
    assert list(load_hierarchy("critters").num_classes.values()) == [4, 12, 36]


def test_known_places_in_the_shipped_trees() -> None:
    assert load_hierarchy("cub").path(0) == ("Diomedeidae", "Phoebastria", "001.Black_footed_Albatross")
    assert load_hierarchy("cars").path(195) == ("Convertible", "smart Convertible", "smart fortwo Convertible 2012")
    fashion = load_hierarchy("fashion_mnist")
    assert fashion.class_names("article")[9] == "Ankle boot"
    assert {fashion.path(label) for label in (0, 6, 8)} == {
        ("Clothes", "Tops", "T-shirt/top"),
        ("Clothes", "Tops", "Shirt"),
        ("Goods", "Accessories", "Bag"),
    }


def test_a_subtree_keeps_order_and_drops_the_childless(tree: Hierarchy) -> None:
    part = tree.subtree(["Lynx", "Herring gull"])
    assert part.classes == (("Birds", "Beasts"), ("Gulls", "Cats"), ("Herring gull", "Lynx"))
    assert part.parents == ((0, 1), (0, 1))
    with pytest.raises(ValueError, match=r"unknown species 'Linx'; did you mean 'Lynx'\?"):
        tree.subtree(["Linx"])


def test_a_csv_file_is_read(tmp_path: Path, tree: Hierarchy) -> None:
    path = tmp_path / "tree.csv"
    lines = [",".join(row) for row in [LEVELS, *ROWS]]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")  # with a byte-order mark, as spreadsheets do
    assert Hierarchy.from_csv(path) == tree


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, ("Beasts", "Gulls", "Gull-cat")], "group 'Gulls' has two parents: 'Birds' and 'Beasts'"),
        ([*ROWS, ROWS[0]], "species 'Ivory gull' stands in 2 rows"),
        ([*ROWS, ("Birds", "", "Dodo")], "group has a class with an empty name"),
        ([*ROWS, ("Birds", "Dodo")], "row 5 has 2 names, the tree has 3 levels"),
        ([], "needs a header"),
    ],
)
def test_a_broken_csv_file_is_named_with_its_fault(tmp_path: Path, rows: list[tuple[str, ...]], message: str) -> None:
    path = tmp_path / "tree.csv"
    path.write_text("\n".join(",".join(row) for row in [LEVELS, *rows]))
    with pytest.raises(ValueError, match=message) as error:
        Hierarchy.from_csv(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("levels", "classes", "parents", "message"),
    [
        (("a", "b"), (("x",), ("y", "z")), ((0, 1),), "b 'z' is an orphan: its parent 1"),
        (("a", "b"), (("x", "w"), ("y",)), ((0,),), "a 'w' has no b"),
        (("a", "b"), (("x",), ("y", "y")), ((0, 0),), "b 'y' is named twice"),
        (("a", "b"), (("x",), ("y", " ")), ((0, 0),), "b has a class with an empty name"),
        (("a", "b"), (("x",), ("y", "z")), ((0,),), "b has 2 classes but 1 parents"),
        (("a", "a"), (("x",), ("y",)), ((0,),), "level 'a' is named twice"),
        (("a", "b"), (("x",),), ((0,),), "2 levels need as many lists of classes"),
        (("a",), ((),), (), "a has no classes"),
        ((), (), (), "0 levels need"),
    ],
)
def test_a_tree_with_a_fault_is_refused(levels: tuple, classes: tuple, parents: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hierarchy(levels, classes, parents)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"named twice.*orphan"):
        Hierarchy(("a", "b"), (("x",), ("y", "y")), ((0, 5),))


def test_a_tree_may_have_one_level() -> None:
    tree = Hierarchy.from_rows(["digit"], [["0"], ["1"]])
    assert tree.parents == ()
    assert tree.to_parent(torch.tensor([1]), "digit").tolist() == [1]


def test_a_dictionary_with_other_keys_is_refused(tree: Hierarchy) -> None:
    with pytest.raises(ValueError, match="has the keys"):
        Hierarchy.from_dict({**tree.to_dict(), "colour": []})


def test_a_registered_tree_is_listed_and_loaded(tree: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HIERARCHIES, "_entries", dict(HIERARCHIES._entries))
    register_hierarchy("mine")(lambda: tree)
    assert "mine" in list_hierarchies()
    assert load_hierarchy("mine") is tree
