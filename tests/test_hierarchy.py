"""Class trees: labels, levels, subtrees, caches, and the built-in trees."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
from conftest import SMALL

import c2f_zoo.integrations.timm  # noqa: F401
from c2f_zoo import C2FModel, Hierarchy, create_model, list_hierarchies, load_hierarchy, register_hierarchy
from c2f_zoo.hierarchy import HIERARCHIES, open_hierarchy

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


def test_index_tensors_by_hand(tree: Hierarchy) -> None:
    assert tree.parent_index("species").tolist() == [0, 0, 1, 2]
    assert tree.parent_index("group").tolist() == [0, 0, 1]
    assert tree.ancestor_index("class").tolist() == [0, 0, 0, 1]
    assert tree.ancestor_index("species").tolist() == [0, 1, 2, 3]
    assert tree.parent_index("species").dtype == tree.ancestor_index("class").dtype == torch.int64
    with pytest.raises(ValueError, match="the classes of 'class', the coarsest level, have no parents"):
        tree.parent_index("class")
    with pytest.raises(ValueError, match="unknown level 'specie'"):
        tree.ancestor_index("specie")


def test_truncated_trees_and_index_tensors_are_cached(tree: Hierarchy) -> None:
    assert tree.truncate("species") is tree
    assert tree.truncate("group") is tree.truncate("group")
    assert tree.truncate("group") == Hierarchy(LEVELS[:2], tree.classes[:2], tree.parents[:1])
    assert tree.parent_index("group") is tree.parent_index("group", "cpu")
    assert tree.ancestor_index("group") is tree.ancestor_index("group")
    assert tree.parent_index("group", "meta").device.type == "meta"
    with torch.device("meta"):
        assert tree.parent_index("group").device.type == "meta"
    assert tree.parent_index("group").device.type == "cpu"


def test_index_tensor_from_inference_mode_works_with_autograd(tree: Hierarchy) -> None:
    with torch.inference_mode():
        tree.parent_index("species")
    scores = torch.ones(3, requires_grad=True)
    (scores[tree.parent_index("species")] ** 2).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [2.0 * tree.parents[-1].count(parent) for parent in range(3)]


def test_fake_tensor_is_not_cached(tree: Hierarchy) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        tree.parent_index("species")
    assert type(tree.parent_index("species")) is torch.Tensor


def test_caches_are_not_copied_or_compared(tree: Hierarchy) -> None:
    fresh, size, before = Hierarchy.from_rows(LEVELS, ROWS), len(pickle.dumps(tree)), dataclasses.asdict(tree)
    tree.truncate("group").parent_index("group")
    tree.ancestors(torch.tensor([0]))
    assert tree == fresh
    assert hash(tree) == hash(fresh)
    assert repr(tree) == repr(fresh)
    assert dataclasses.asdict(tree) == before
    assert len(pickle.dumps(tree)) == size
    for copied in (pickle.loads(pickle.dumps(tree)), copy.deepcopy(tree), dataclasses.replace(tree)):
        assert copied == tree
        assert set(vars(copied)) == {"levels", "classes", "parents", "version", "ragged"}
        assert copied.to_parent(torch.tensor([3]), "class").tolist() == [1]


@pytest.mark.parametrize("label", [-1, 4])
def test_label_outside_the_tree(tree: Hierarchy, label: int) -> None:
    with pytest.raises(ValueError, match=rf"label {label} is outside the tree: species has 4 classes"):
        tree.to_parent(torch.tensor([0, label]), "class")


@pytest.mark.parametrize("label", [-1, 4])
def test_path_of_a_label_outside_the_tree(tree: Hierarchy, label: int) -> None:
    with pytest.raises(ValueError, match=rf"label {label} is outside the tree: species has 4 classes"):
        tree.path(label)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_labels_of_small_integers_in_a_tree_of_more_classes(dtype: torch.dtype) -> None:
    tree = Hierarchy.from_rows(("ten", "one"), [(f"{label // 10}x", str(label)) for label in range(300)])
    labels = torch.tensor([7, 100], dtype=dtype)
    assert tree.ancestors(labels).tolist() == [[0, 7], [10, 100]]


def test_unknown_level(tree: Hierarchy) -> None:
    with pytest.raises(ValueError, match=r"unknown level 'specie'; did you mean 'species'\?"):
        tree.class_names("specie")


@pytest.mark.parametrize("name", list_hierarchies())
def test_built_in_trees_are_complete(name: str) -> None:
    tree = load_hierarchy(name)
    assert Hierarchy.from_dict(json.loads(json.dumps(tree.to_dict()))) == tree
    fine = torch.arange(tree.num_classes[tree.finest])
    for level in tree.levels:
        names = tree.class_names(level)
        ancestors = tree.to_parent(fine, level)
        assert set(ancestors.tolist()) == set(range(len(names))), "every class has a leaf class"
        for label in (0, len(fine) - 1):
            assert tree.path(label)[tree.levels.index(level)] == names[ancestors[label]]


def test_published_numbers_of_classes() -> None:
    # Huo et al. 2019, Table 2 (published), and Seo & Shin 2019.
    assert list(load_hierarchy("cub").num_classes.values()) == [36, 113, 200]
    assert list(load_hierarchy("cars").num_classes.values()) == [14, 113, 196]
    assert list(load_hierarchy("fashion_mnist").num_classes.values()) == [2, 6, 10]
    assert list(load_hierarchy("critters").num_classes.values()) == [4, 12, 36]
    assert list(load_hierarchy("cub_modern").num_classes.values()) == [13, 37, 121, 200]
    assert list(load_hierarchy("cifar100").num_classes.values()) == [20, 100]
    cub100 = load_hierarchy("cub100")
    assert list(cub100.num_classes.values()) == [31, 73, 100]  # docs/results.md
    assert cub100 == load_hierarchy("cub").subtree(cub100.classes[-1])  # as the dataset `cub` makes it


def test_known_paths_in_built_in_trees() -> None:
    assert load_hierarchy("cub").path(0) == ("Diomedeidae", "Phoebastria", "001.Black_footed_Albatross")
    assert load_hierarchy("cars").path(195) == ("Convertible", "smart Convertible", "smart fortwo Convertible 2012")
    fashion = load_hierarchy("fashion_mnist")
    assert fashion.class_names("article")[9] == "Ankle boot"
    assert {fashion.path(label) for label in (0, 6, 8)} == {
        ("Clothes", "Tops", "T-shirt/top"),
        ("Clothes", "Tops", "Shirt"),
        ("Goods", "Accessories", "Bag"),
    }


def test_modern_tree_of_birds_has_the_same_species() -> None:
    modern, paper = load_hierarchy("cub_modern"), load_hierarchy("cub")
    assert modern.levels == ("order", "family", "genus", "species")
    assert modern.class_names("species") == paper.class_names("species")
    # Since 2005 the chat has its own family, and the frigatebirds an order without pelicans.
    assert modern.path(19) == ("Passeriformes", "Icteriidae", "Icteria", "020.Yellow_breasted_Chat")
    assert paper.path(19)[0] == "Parulidae"
    assert modern.path(43)[:2] == ("Suliformes", "Fregatidae")
    assert modern.path(35) == ("Piciformes", "Picidae", "Colaptes", "036.Northern_Flicker")


# The coarse label of each fine label in the files of CIFAR-100.
CIFAR100 = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1),
    *(10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12),
    *(12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0),
    *(17, 8, 14, 13),
]


def test_cifar100_has_the_labels_of_its_files() -> None:
    tree = load_hierarchy("cifar100")
    assert tree.to_parent(torch.arange(100), "superclass").tolist() == CIFAR100
    for level in tree.levels:
        assert list(tree.class_names(level)) == sorted(tree.class_names(level))
    assert {CIFAR100.count(label) for label in range(20)} == {5}
    assert tree.path(1) == ("fish", "aquarium_fish")
    assert tree.path(41) == ("vehicles_2", "lawn_mower")
    assert tree.path(99) == ("non-insect_invertebrates", "worm")


@pytest.mark.parametrize("name", list_hierarchies())
def test_built_in_tree_has_a_version(name: str) -> None:
    assert load_hierarchy(name).version == "1.0"
    assert load_hierarchy(name).truncate(load_hierarchy(name).levels[0]).version == "1.0"


def test_saved_model_contains_its_tree(small_model: C2FModel, tmp_path: Path) -> None:
    small_model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["hierarchy"]
    assert saved["version"] == "1.0"
    assert Hierarchy.from_dict(saved) == load_hierarchy("cub")


def test_subtree_keeps_the_order_of_the_tree() -> None:
    tree = Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("edged", "box"), ("round", "ring")])
    subtree = tree.subtree(["ring", "box"])
    assert subtree.classes == (("round", "edged"), ("box", "ring"))
    assert subtree.parents == ((1, 0),)


def test_subtree_drops_classes_without_children(tree: Hierarchy) -> None:
    subtree = tree.subtree(["Lynx", "Herring gull"])
    assert subtree.classes == (("Birds", "Beasts"), ("Gulls", "Cats"), ("Herring gull", "Lynx"))
    assert subtree.parents == ((0, 1), (0, 1))
    with pytest.raises(ValueError, match=r"unknown species 'Linx'; did you mean 'Lynx'\?"):
        tree.subtree(["Linx"])


def test_csv_file_is_read(tmp_path: Path, tree: Hierarchy) -> None:
    path = tmp_path / "tree.csv"
    lines = [",".join(row) for row in [LEVELS, *ROWS]]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")  # with a byte-order mark, as spreadsheets write
    assert Hierarchy.from_csv(path) == tree


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, ("Birds", "Gulls")], r"line 6: group 'Gulls' ends here but has classes below it \(line 2\)"),
        ([*ROWS, ROWS[0]], "line 6: species 'Ivory gull' is already in line 2"),
        ([*ROWS, ("Birds", "", "Dodo")], "line 6: group is empty"),
        ([*ROWS, ("Birds", "Dodo", "a", "b")], "line 6: the path 'Birds > Dodo > a > b' has 4 names, the tree has 3"),
        ([], "needs a header"),
    ],
)
def test_malformed_csv_file(tmp_path: Path, rows: list[tuple[str, ...]], message: str) -> None:
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
        (("a", "b"), (("x",), ("y", " z")), ((0, 0),), "b ' z' has surrounding white space"),
        (("a", "b "), (("x",), ("y", "z")), ((0, 0),), "level 'b ' has surrounding white space"),
        (("a", "b"), (("x",), ("y", "z")), ((0,),), "b has 2 classes but 1 parents"),
        (("a", "a"), (("x",), ("y",)), ((0,),), "level 'a' is named twice"),
        (("a", "b"), (("x",),), ((0,),), "2 levels need 2 lists of classes and 1 lists of parents, not 1 and 1"),
        (("a",), ((),), (), "a has no classes"),
        ((), (), (), "0 levels need"),
    ],
)
def test_malformed_tree(levels: tuple, classes: tuple, parents: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hierarchy(levels, classes, parents)


def test_all_errors_are_listed() -> None:
    with pytest.raises(ValueError, match=r"named twice.*orphan"):
        Hierarchy(("a", "b"), (("x",), ("y", "y")), ((0, 5),))


def test_tree_with_one_level() -> None:
    tree = Hierarchy.from_rows(["digit"], [["0"], ["1"]])
    assert tree.parents == ()
    assert tree.to_parent(torch.tensor([1]), "digit").tolist() == [1]


def test_dictionary_with_unexpected_keys(tree: Hierarchy) -> None:
    with pytest.raises(ValueError, match="has the keys"):
        Hierarchy.from_dict({**tree.to_dict(), "colour": []})


def test_registered_tree_is_listed_and_loaded(tree: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HIERARCHIES, "_entries", dict(HIERARCHIES._entries))
    register_hierarchy("mine")(lambda: tree)
    assert "mine" in list_hierarchies()
    assert load_hierarchy("mine") is tree


class TestOpening:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "tree.csv"
        path.write_text("\n".join(map(",".join, [LEVELS, *ROWS])))
        return path

    def test_a_name_a_file_and_a_tree(self, file: Path, tree: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
        assert open_hierarchy(file) == open_hierarchy(str(file)) == open_hierarchy(tree) == tree
        monkeypatch.chdir(file.parent)
        (file.parent / "cub").write_text("not a tree")
        assert open_hierarchy("cub") is load_hierarchy("cub"), "a registered name wins"
        with pytest.raises(
            ValueError, match=r"'tree.csv' is a file, .* use c2f_zoo.hierarchy.open_hierarchy\('tree.csv'\)"
        ):
            load_hierarchy("tree.csv")
        with pytest.raises(ValueError, match=r"no file 'tre.csv', and it is an unknown hierarchy 'tre.csv'"):
            open_hierarchy("tre.csv")

    @pytest.mark.slow
    def test_models_of_a_file(self, file: Path, tree: Hierarchy, tmp_path: Path) -> None:
        model = create_model("mlph", hierarchy=str(file), **SMALL)  # type: ignore[arg-type]
        assert (model.hierarchy, model.levels) == (tree, LEVELS)
        model.save_pretrained(tmp_path / "model")
        (tmp_path / "other.csv").write_text("class,group\nBirds,Gulls\nBirds,Jays\nBeasts,Cats\n")
        with pytest.warns(UserWarning, match="some weights"):
            other = create_model(f"local-dir:{tmp_path / 'model'}", hierarchy=tmp_path / "other.csv")
        assert other.hierarchy == tree.truncate("group")
        assert create_model("mlph_tiny_critters", hierarchy=str(file)).hierarchy == tree
        assert timm.create_model("mlph_tiny_critters", hierarchy=str(file)).num_classes == 4

    def test_a_file_of_parents_needs_levels(self, file: Path) -> None:
        file.write_text("child,parent\nBirds,\nGulls,Birds\n")
        with pytest.raises(
            ValueError, match=r"does not name the levels; .* Hierarchy.from_parents\('.*tree.csv', levels"
        ):
            create_model("mlph", hierarchy=str(file), **SMALL)  # type: ignore[arg-type]
        assert open_hierarchy(file, ["class", "group"]).classes == (("Birds",), ("Gulls",))


def test_tree_is_built_once_unless_it_is_registered_again(tree: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HIERARCHIES, "_entries", dict(HIERARCHIES._entries))
    built = []
    register_hierarchy("mine")(lambda: built.append(1) or tree)
    assert load_hierarchy("mine") is load_hierarchy("mine")
    assert len(built) == 1
    register_hierarchy("mine", override=True)(lambda: tree.truncate("group"))
    assert load_hierarchy("mine") is tree.truncate("group")


def test_file_of_a_tree_is_read_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from c2f_zoo.hierarchy import builtin, reading

    monkeypatch.setattr(builtin, "_BUILT", {})
    reads, read = [], reading.read_csv_rows
    monkeypatch.setattr(reading, "read_csv_rows", lambda path: reads.append(path) or read(path))
    for _ in range(2):
        create_model("mlph_tiny_critters")
    assert [path.name for path in reads] == ["critters.csv"]
