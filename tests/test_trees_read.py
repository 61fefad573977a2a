"""Trees read from CSV files, folders and lists, and the errors of malformed ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from c2f_zoo import Hierarchy, list_hierarchies, load_hierarchy

LEVELS = ("class", "group", "species")
CLASSES = (("Birds", "Beasts"), ("Gulls", "Jays", "Cats"), ("Ivory gull", "Herring gull", "Blue jay", "Lynx"))
TREE = Hierarchy(LEVELS, CLASSES, ((0, 0, 1), (0, 0, 1, 2)))
PATHS = [f"{TREE.path(label)[0]}/{TREE.path(label)[1]}/{name}/1.jpg" for label, name in enumerate(CLASSES[2])]
DOCS = Path(__file__).parents[1] / "docs" / "reference" / "hierarchy.md"


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def errors_in(error: pytest.ExceptionInfo[ValueError], source: object) -> list[str]:
    """Return the lines of a tree's error, without the first."""
    head, *lines = str(error.value).splitlines()
    assert head == f"invalid hierarchy in {source}:"
    return [line.removeprefix("  ") for line in lines]


class TestCSV:
    def errors(self, path: Path) -> list[str]:
        with pytest.raises(ValueError) as error:
            Hierarchy.from_csv(path)
        return errors_in(error, path)

    def test_all_errors_are_listed_with_their_lines(self, tmp_path: Path) -> None:
        rows = ["class,group,species", "Birds,Gulls,Ivory gull", "", "Birds,Gulls,Herring gull", "Birds, Jays,Blue jay"]
        rows += ["Beasts,Gulls,Gull-cat", "Beasts,Gulls,Sea cat", "Beasts,,Lynx", "Birds,Gulls,Ivory gull"]
        rows += ["Beasts,Cats", "Beasts,Cats,Blue jay"]
        assert self.errors(write(tmp_path / "tree.csv", *rows)) == [
            "line 5: group ' Jays' has surrounding white space; write 'Jays'",
            "line 8: group is empty",
            "line 9: species 'Ivory gull' is already in line 2",
            "line 10: group 'Cats' ends here but has classes below it (line 11); remove one of the two",
        ]

    def test_errors_in_the_header(self, tmp_path: Path) -> None:
        assert self.errors(write(tmp_path / "tree.csv", "kind,kind, shape,", "a,b,c,d")) == [
            "line 1: a level ' shape' has surrounding white space; write 'shape'",
            "line 1: a level is empty",
            "line 1: level 'kind' is named twice",
        ]

    def test_error_in_every_row_is_listed_once(self, tmp_path: Path) -> None:
        assert self.errors(write(tmp_path / "tree.csv", "kind,shape", "a,b,c", "d,e,f", "g,h,i")) == [
            "every path has 3 names, the tree has 2 levels (kind, shape)"
        ]

    @pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
    def test_another_delimiter(self, tmp_path: Path, delimiter: str, name: str) -> None:
        path = write(tmp_path / "tree.csv", delimiter.join(LEVELS), delimiter.join(TREE.path(0)))
        assert self.errors(path) == [f"line 1: cells are separated by {name}; use commas"]

    def test_byte_order_mark_below_the_header(self, tmp_path: Path) -> None:
        (message,) = self.errors(write(tmp_path / "tree.csv", "kind,shape", "round,disc", "\ufeffround,ring"))
        assert message.startswith(r"line 3: kind '\ufeffround' contains a byte-order mark")

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
    def test_utf16(self, tmp_path: Path, encoding: str) -> None:
        path = tmp_path / "tree.csv"
        path.write_text("kind,shape\nround,disc\n", encoding=encoding)
        assert self.errors(path) == [
            "it is encoded as UTF-16; save the file as UTF-8 (spreadsheets call it 'CSV UTF-8')"
        ]

    def test_bytes_that_are_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "tree.csv"
        path.write_bytes("kind,shape\nround,Möwe\nround, disc\n".encode("latin-1"))
        first, second = self.errors(path)
        assert first.startswith(r"line 2: b'round,M\xf6we' is not UTF-8; save the file as UTF-8")
        assert second == "line 3: shape ' disc' has surrounding white space; write 'disc'"

    def test_unclosed_quote(self, tmp_path: Path) -> None:
        (message,) = self.errors(write(tmp_path / "tree.csv", "kind,shape", 'round,"disc', "round,ring"))
        assert message.startswith("line 2: shape spans several lines, 'disc\\nround,ring\\n'")
        (message,) = self.errors(write(tmp_path / "tree.csv", "kind,shape", "round,disc", 'round,"' + 200_000 * "x"))
        assert message.startswith("line 3: field larger")

    @pytest.mark.parametrize("text", ["", "\n", "kind,shape\n"])
    def test_empty_file(self, tmp_path: Path, text: str) -> None:
        path = write(tmp_path / "tree.csv", text, end="")
        assert self.errors(path) == ["it needs a header with the levels, and a row for each leaf class"]

    def test_file_of_a_spreadsheet(self, tmp_path: Path) -> None:
        rows = [",".join(f'"{name}"' for name in TREE.path(label)) for label in range(4)]
        path = write(tmp_path / "tree.csv", "\ufeff" + ",".join(LEVELS), *rows, end="\r\n")
        assert Hierarchy.from_csv(path) == TREE

    def test_example_in_the_docs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        text, message = re.findall(r"```(?:csv|text)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
        Path("birds.csv").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError) as error:
            Hierarchy.from_csv("birds.csv")
        assert f"ValueError: {error.value}\n" == message


class TestParents:
    GOOD = ("Birds,", "Beasts,", "Gulls,Birds", "Jays,Birds", "Cats,Beasts", "Ivory gull,Gulls", "Herring gull,Gulls")
    GOOD += ("Blue jay,Jays", "Lynx,Cats")

    def errors(self, path: Path, levels: tuple[str, ...] = LEVELS) -> list[str]:
        with pytest.raises(ValueError) as error:
            Hierarchy.from_parents(path, levels)
        return errors_in(error, path)

    def test_tree_is_read(self, tmp_path: Path) -> None:
        assert Hierarchy.from_parents(write(tmp_path / "a.csv", "child,parent", *self.GOOD), LEVELS) == TREE

    def test_empty_parents_and_swapped_columns(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "child,parent", "Birds", "Beasts", *self.GOOD[2:], end="\r\n")
        assert Hierarchy.from_parents(path, LEVELS) == TREE
        swapped = [",".join(reversed(line.split(","))) for line in self.GOOD]
        path = write(tmp_path / "b.csv", "\ufeffParent,Child", *swapped)
        assert Hierarchy.from_parents(path, LEVELS) == TREE

    def test_rows_in_any_order(self, tmp_path: Path) -> None:
        tree = Hierarchy.from_parents(write(tmp_path / "a.csv", "child,parent", *reversed(self.GOOD)), LEVELS)
        assert tree.classes == tuple(tuple(reversed(names)) for names in CLASSES)
        assert {tree.path(label) for label in range(4)} == {TREE.path(label) for label in range(4)}

    @pytest.mark.parametrize("name", list_hierarchies())
    def test_built_in_tree(self, tmp_path: Path, name: str) -> None:
        tree = load_hierarchy(name)
        rows = [f'"0 {top}",' for top in tree.classes[0]]
        for depth, (names, parents) in enumerate(zip(tree.classes[1:], tree.parents, strict=True)):
            rows += [
                f'"{depth + 1} {child}","{depth} {tree.classes[depth][label]}"'
                for child, label in zip(names, parents, strict=True)
            ]
        read = Hierarchy.from_parents(write(tmp_path / "a.csv", "child,parent", *rows), tree.levels)
        assert read.parents == tree.parents
        assert [[name[2:] for name in names] for names in read.classes] == [list(names) for names in tree.classes]

    def test_all_errors_are_listed_with_their_lines(self, tmp_path: Path) -> None:
        rows = ["Birds,", "Gulls,Birds", "Ivory gull,Gulls", "Gulls,Beasts", "Ivory gull,Gulls", "Jays ,Birds"]
        rows += ["Blue jay,Jays", ",Jays", "Lynx,Cats", "egg,hen", "hen,egg", "chick,hen", "Dodo,Birds", "a,b,c"]
        rows += ["Birds,Jays"]
        assert self.errors(write(tmp_path / "a.csv", "child,parent", *rows)) == [
            "line 6: 'Ivory gull' is already in line 4",
            "line 7: child 'Jays ' has surrounding white space; write 'Jays'",
            "line 9: child is empty",
            "line 15: 3 cells, not a child and a parent: ['a', 'b', 'c']",
            "line 16: 'Birds' has two parents: 'none' (line 2) and 'Jays' (line 16); rename one of the classes",
            "line 4: the parent 'Gulls' of 'Ivory gull' is the name of 2 classes; write 'Gulls (Birds)' or "
            "'Gulls (Beasts)'",
            "line 5: the parent 'Beasts' of 'Gulls (Beasts)' has no row",
            "line 10: the parent 'Cats' of 'Lynx' has no row",
            "line 11: a cycle: 'egg' (line 11) under 'hen' (line 12) under 'egg'",
        ]

    def test_class_with_itself_as_parent(self, tmp_path: Path) -> None:
        assert self.errors(write(tmp_path / "a.csv", "child,parent", *self.GOOD, "Lynx2,Lynx2")) == [
            "line 11: a cycle: 'Lynx2' (line 11) under 'Lynx2'"
        ]

    def test_wrong_number_of_levels(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "child,parent", *self.GOOD)
        assert self.errors(path, ("group", "species")) == [
            "every path has 3 names, the tree has 2 levels (group, species)"
        ]

    @pytest.mark.parametrize("lines", [[], ["child,parent"], ["Birds,", "Gulls,Birds"], ["child,mother", "Birds,"]])
    def test_wrong_header(self, tmp_path: Path, lines: list[str]) -> None:
        (message,) = self.errors(write(tmp_path / "a.csv", *lines))
        assert message.startswith("it needs the header 'child,parent'")

    def test_another_delimiter(self, tmp_path: Path) -> None:
        assert self.errors(write(tmp_path / "a.csv", "child;parent", "Birds;")) == [
            "line 1: cells are separated by semicolons; use commas"
        ]


class TestFolders:
    def make(self, root: Path, *paths: str) -> Path:
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        return root

    def test_each_folder_is_a_class(self, tmp_path: Path) -> None:
        tree = Hierarchy.from_folders(self.make(tmp_path, *PATHS), LEVELS)
        assert tree.levels == LEVELS
        assert tree.classes == (
            ("Beasts", "Birds"),
            ("Cats", "Gulls", "Jays"),
            ("Lynx", "Herring gull", "Ivory gull", "Blue jay"),
        )
        assert {tree.path(label) for label in range(4)} == {TREE.path(label) for label in range(4)}

    def test_hidden_files_and_files_next_to_folders_are_ignored(self, tmp_path: Path) -> None:
        plain = Hierarchy.from_folders(self.make(tmp_path, *PATHS))
        more = ["README.txt", "Birds/list.csv", "Birds/Gulls/.DS_Store", ".cache/a/1.jpg", "Birds/.thumbs/1.jpg"]
        assert Hierarchy.from_folders(self.make(tmp_path, *more)) == plain

    def test_paths_give_the_same_tree(self, tmp_path: Path) -> None:
        tree = Hierarchy.from_folders(self.make(tmp_path, *PATHS))
        assert Hierarchy.from_paths(reversed(PATHS)) == tree
        found = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.jpg")]
        assert Hierarchy.from_paths([*found, Path("Birds/Gulls/.DS_Store")]) == tree
        others = ["Birds/list.csv", "Birds/Gulls/map.png"]
        assert Hierarchy.from_folders(self.make(tmp_path, *others)) == tree
        assert Hierarchy.from_paths([*found, *others]) == tree

    @pytest.mark.parametrize(
        ("depth", "levels"),
        [
            (1, ("species",)),
            (3, ("family", "genus", "species")),
            (7, ("kingdom", "phylum", "class", "order", "family", "genus", "species")),
            (9, tuple(f"level_{number}" for number in range(1, 10))),
        ],
    )
    def test_default_names_of_levels(self, tmp_path: Path, depth: int, levels: tuple[str, ...]) -> None:
        path = "/".join("abcdefghi"[:depth]) + "/1.jpg"
        tree = Hierarchy.from_folders(self.make(tmp_path, path))
        assert (tree.levels, tree.path(0)) == (levels, tuple("abcdefghi"[:depth]))
        assert Hierarchy.from_paths([path]) == tree

    def test_all_errors_are_listed(self, tmp_path: Path) -> None:
        self.make(tmp_path, *PATHS, "Beasts/Gulls/Gull-cat/1.jpg", "Beasts/Yeti/1.jpg", "Birds/Jays/Grey jay /1.jpg")
        (tmp_path / "Birds" / "Owls").mkdir()
        with pytest.raises(ValueError) as error:
            Hierarchy.from_folders(tmp_path)
        assert errors_in(error, tmp_path) == [
            "folder Birds/Owls is empty",
            "folder Birds/Jays/Grey jay : species 'Grey jay ' has surrounding white space; write 'Grey jay'",
        ]

    def test_wrong_depth(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"every path has 3 names, the tree has 2 levels \(kind, shape\)"):
            Hierarchy.from_folders(self.make(tmp_path, *PATHS), ("kind", "shape"))

    def test_no_folders(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="it contains no folders"):
            Hierarchy.from_folders(self.make(tmp_path, "1.jpg"))
        with pytest.raises(FileNotFoundError, match="nowhere"):
            Hierarchy.from_folders(tmp_path / "nowhere")

    def test_paths_without_classes(self) -> None:
        with pytest.raises(ValueError) as error:
            Hierarchy.from_paths(["/data/Birds/1.jpg", "1.jpg", "../Birds/1.jpg", "Birds/1.jpg"])
        assert [re.findall("'(.*)' must consist", line) for line in errors_in(error, "the paths")] == [
            ["/data/Birds/1.jpg"],
            ["1.jpg"],
            ["../Birds/1.jpg"],
        ]
        with pytest.raises(ValueError, match="no paths are given"):
            Hierarchy.from_paths([])


class TestINaturalist:
    # The first is a category of iNaturalist 2021; Prunella are accentors and self-heals.
    WORM = "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris"
    BIRD = "00001_Animalia_Chordata_Aves_Passeriformes_Prunellidae_Prunella_modularis"
    MINT = "00002_Plantae_Tracheophyta_Magnoliopsida_Lamiales_Lamiaceae_Prunella_vulgaris"

    def test_seven_levels_in_the_order_of_the_categories(self) -> None:
        tree = Hierarchy.from_inaturalist([self.BIRD, self.WORM])
        assert tree.levels == ("kingdom", "phylum", "class", "order", "family", "genus", "species")
        assert tree.path(1) == (*self.WORM.split("_")[1:7], "Lumbricus terrestris")
        assert tree.class_names("genus") == ("Prunella", "Lumbricus")
        assert list(tree.num_classes.values()) == [1, 2, 2, 2, 2, 2, 2]

    def test_homonyms_get_the_name_of_their_parent(self) -> None:
        tree = Hierarchy.from_inaturalist([self.WORM, self.BIRD, self.MINT])
        assert tree.class_names("genus") == ("Lumbricus", "Prunella (Prunellidae)", "Prunella (Lamiaceae)")
        assert tree.class_names("species") == ("Lumbricus terrestris", "Prunella modularis", "Prunella vulgaris")

    def test_homonyms_under_homonyms(self) -> None:
        tree = Hierarchy.from_inaturalist(["0_k_p_c_o1_f_g_s", "1_k_p_c_o2_f_g_s"])
        assert tree.class_names("order") == ("o1", "o2")
        assert tree.class_names("family") == ("f (o1)", "f (o2)")
        assert tree.class_names("genus") == ("g (f (o1))", "g (f (o2))")
        assert len(set(tree.class_names("species"))) == 2

    def test_all_errors_are_listed(self) -> None:
        with pytest.raises(ValueError) as error:
            Hierarchy.from_inaturalist(["Aves", self.BIRD, self.BIRD, self.BIRD.replace("00001", "00007"), "1_a_b"])
        errors = errors_in(error, "the categories")
        assert [line.split(" ", 2)[1] for line in errors] == [
            "'Aves'",
            f"'{self.BIRD}'",
            "'1_a_b'",
            errors[3].split()[1],
        ]
        assert errors[1].endswith("appears twice")
        assert errors[3].endswith(f"species 'Prunella modularis' is already in category '{self.BIRD}'")


LISTS = {
    "manufacturers": ("Boeing", "Airbus", "Supermarine"),
    "families": ("Boeing 737", "A320", "Boeing 707", "Spitfire"),
    "variants": ("A318", "737-200", "A319", "Spitfire", "707-320"),
}
IMAGES = {
    "0000001": ("Airbus", "A320", "A319"),
    "0000002": ("Boeing", "Boeing 707", "707-320"),
    "0000003": ("Airbus", "A320", "A318"),
    "0000004": ("Supermarine", "Spitfire", "Spitfire"),
    "0000005": ("Boeing", "Boeing 737", "737-200"),
    "0000006": ("Airbus", "A320", "A319"),
}


class TestAircraft:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name, lines in LISTS.items():
            write(tmp_path / f"{name}.txt", *lines)
        for depth, level in enumerate(("manufacturer", "family", "variant")):
            lines = [f"{number} {names[depth]}" for number, names in IMAGES.items()]
            write(tmp_path / f"images_{level}_trainval.txt", *lines)
        return tmp_path

    def errors(self, folder: Path) -> list[str]:
        with pytest.raises(ValueError) as error:
            Hierarchy.from_aircraft(folder)
        return errors_in(error, folder)

    def test_labels_follow_the_order_of_the_lists(self, folder: Path) -> None:
        tree = Hierarchy.from_aircraft(folder)
        assert tree.levels == ("manufacturer", "family", "variant")
        assert tree.classes == tuple(LISTS.values())
        assert {tree.path(label) for label in range(5)} == set(IMAGES.values())

    def test_all_errors_are_listed(self, folder: Path) -> None:
        write(folder / "families.txt", *LISTS["families"], "A320", "Concorde")
        lines = ["0000001 A320", "0000002 Boeing 707", "0000003 Boeing 737", "0000004 Spitfir", "0000005 Boeing 737"]
        write(folder / "images_family_trainval.txt", *lines, "0000005 A320", "0000006 A320")
        assert set(self.errors(folder)) == {
            "families.txt, line 5: 'A320' is already in families.txt, line 2",
            "images_family_trainval.txt, line 4: '0000004 Spitfir' must be an image number and a class of families.txt",
            "images_family_trainval.txt, line 6: image 0000005 is 'Boeing 737' on an earlier line",
            "families.txt: images_family_trainval.txt has no image of 'Concorde'",
            "families.txt: images_family_trainval.txt has no image of 'Spitfire'",
            "images_family_trainval.txt: 1 images of the other files are missing, first 0000004",
            "image 0000005: family 'Boeing 737' has two parents: 'Airbus' (image 0000003) and 'Boeing' (image 0000005)",
        }

    def test_missing_file(self, folder: Path) -> None:
        (folder / "variants.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"missing variants.txt; pass 'fgvc-aircraft-2013b/data'"):
            Hierarchy.from_aircraft(folder)
