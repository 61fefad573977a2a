"""Embeddings, retrieval metrics, the index of images, and the commands `index` and `similar`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import retrieve
import torch
from conftest import SMALL
from PIL import Image
from retrieve import RetrieveOptions
from safetensors.numpy import load_file, save_file
from test_cli import c2f_zoo, run
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

from c2f_zoo import C2FModel, create_dataset, create_model
from c2f_zoo.data.transforms import create_transform
from c2f_zoo.evaluation.contact_sheet import plot_contact_sheet
from c2f_zoo.evaluation.retrieval import score_retrieval
from c2f_zoo.inference.embedder import Embedder
from c2f_zoo.inference.image_index import ImageIndex
from c2f_zoo.io.files import read_csv

NAME = "mlph_tiny_critters"
EXAMPLE = ImageIndex(np.eye(3, 2, dtype=np.float16), ["a.jpg", "b/ä.jpg", "c.jpg"], "/birds", "my_model", "0" * 64)


def unit_vectors(count: int, features: int, seed: int = 0) -> np.ndarray:
    """Return random vectors of length 1."""
    v = np.random.default_rng(seed).normal(size=(count, features))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two critters of each of three species, in subfolders."""
    made = tmp_path_factory.mktemp("critters")
    dataset = create_dataset("critters", "test", per_class=2)
    for index in (0, 1, 30, 31, 70, 71):
        image, label = dataset[index]
        (made / str(label)).mkdir(exist_ok=True)
        image.save(made / str(label) / f"{index}.png")
    return made


@pytest.fixture(scope="module")
def index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("index") / "critters.index"
    c2f_zoo("index", NAME, str(folder), "-o", str(output))
    return output


def test_embedding_is_the_normalized_pooled_vector(small_model: C2FModel) -> None:
    model, x = small_model.eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        v = model.embed(x)
        pooled = model.pooling(model.backbone(x)).double()
    assert v.dtype == torch.float32
    torch.testing.assert_close(v.double(), pooled / pooled.square().sum(dim=1, keepdim=True).sqrt(), rtol=0, atol=1e-6)


def test_embedding_of_half_precision_is_float32_of_length_1_or_zero(small_model: C2FModel) -> None:
    model = small_model.eval()
    large = torch.full((2, 8), 6e4, dtype=torch.float16)  # whose length is beyond half precision
    model.pooling.forward = lambda maps: large  # type: ignore[assignment, method-assign]
    v = model.embed(torch.rand(2, 3, 64, 64))
    assert v.dtype == torch.float32
    torch.testing.assert_close(v.norm(dim=1), torch.ones(2))
    large.zero_()
    assert not model.embed(torch.rand(2, 3, 64, 64)).any()


def test_view_chooses_the_batch_norm_of_embeddings() -> None:
    options = {
        **SMALL,
        "backbone": "test_resnet",
        "batch_norm": "per_level",
        "resolutions": {"family": 16, "genus": 32},
    }
    model = create_model("mlph", hierarchy="cub", **options)  # type: ignore[arg-type]
    x = torch.rand(4, 3, 64, 64)
    model.train()
    for _ in range(3):
        model(x, levels=["family"])  # its batch norm learns the statistics
    model.eval()
    with torch.no_grad():
        default, species, family = model.embed(x), model.embed(x, "species"), model.embed(x, "family")
    assert default.equal(species)
    assert not default.allclose(family, atol=1e-3)


def test_embedder_sees_images_at_the_leaf_levels_resolution() -> None:
    model = create_model("mlph", hierarchy="cub", resolutions={"species": 40}, **SMALL).eval()  # type: ignore[arg-type]
    images = [Image.effect_noise((90, 120), 60).convert("RGB") for _ in range(3)]
    transform = create_transform(model.config.preprocessing, 40, train=False)
    with torch.no_grad():
        expected = torch.cat([model.embed(transform(image)[None]) for image in images])
    np.testing.assert_allclose(Embedder(model, batch_size=2)(images), expected, atol=1e-5)


def test_recall_and_average_precision_agree_with_torchmetrics() -> None:
    v, q = unit_vectors(40, 5), unit_vectors(40, 5, seed=1)
    q = v + 0.5 * q  # noisy versions of the same images
    labels = np.random.default_rng(2).integers(-1, 6, 40)
    labels[7] = 6  # the only one of its class
    found = score_retrieval(q, v, labels, ks=[1, 3, 100])
    chosen = [i for i in range(40) if labels[i] >= 0 and (labels == labels[i]).sum() > 1]
    assert found.left_out == 40 - len(chosen) == 1 + (labels == -1).sum()
    for row, i in enumerate(chosen):
        others = [j for j in range(40) if j != i]
        scores = torch.tensor(v[others] @ q[i]) + 10  # torchmetrics takes no image of a negative score for a hit
        target = torch.tensor(labels[others] == labels[i])
        assert found.average_precision[row] == pytest.approx(float(retrieval_average_precision(scores, target)), 1e-6)
        for k in (1, 3, 100):
            assert found.recall[k][row] == bool(retrieval_hit_rate(scores, target, top_k=min(k, 39)))


def test_average_precision_of_a_case_by_hand() -> None:
    # From image 0, the others are ranked 1, 2, 3, 4; of its class are 2 and 3: (1 / 2 + 2 / 3) / 2.
    angles = np.array([0, 0.1, 0.2, 0.3, 0.4])
    v = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = score_retrieval(v, v, np.array([0, 1, 0, 0, 2]), ks=[1, 2])
    assert found.average_precision[0] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (found.recall[1][0], found.recall[2][0]) == (False, True)
    assert found.left_out == 2


def test_the_query_itself_is_never_a_hit_even_among_equals() -> None:
    v = np.tile([1.0, 0.0], (4, 1))
    found = score_retrieval(v, v, np.array([0, 1, 1, 0]), ks=[1])
    assert found.recall[1].tolist() == [False, False, False, True]  # of equals, the first in the gallery


def test_retrieval_needs_labels_of_the_same_images() -> None:
    with pytest.raises(ValueError, match="3 queries, 2 images of the gallery and 3 labels"):
        score_retrieval(np.eye(3), np.eye(2, 3), np.zeros(3))
    nothing = score_retrieval(np.eye(3), np.eye(3), np.arange(3))
    assert (len(nothing.average_precision), nothing.recall[1].dtype, nothing.left_out) == (0, bool, 3)


def test_search_is_a_sorted_product(tmp_path: Path) -> None:
    v = unit_vectors(5000, 7).astype(np.float16)  # more than one block
    index = ImageIndex(v, [f"{number}.jpg" for number in range(5000)], "/birds", "my_model", "0")
    index.save(tmp_path / "birds.index")
    query = unit_vectors(1, 7, seed=1)[0].astype(np.float32)
    found = ImageIndex.load(tmp_path / "birds.index").search(query, k=20)
    similarities = v.astype(np.float64) @ query
    assert [file for file, _ in found] == [f"{number}.jpg" for number in np.argsort(-similarities)[:20]]
    assert [similarity for _, similarity in found] == pytest.approx(sorted(similarities, reverse=True)[:20], abs=1e-6)
    assert len(index.search(query, k=9999)) == 5000


@pytest.mark.skipif(os.name != "posix", reason="file permissions")
def test_an_index_may_be_read_as_other_new_files(tmp_path: Path) -> None:
    EXAMPLE.save(tmp_path / "birds.index")
    (tmp_path / "other").touch()
    assert (tmp_path / "birds.index").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_an_index_keeps_names_of_any_kind(tmp_path: Path) -> None:
    names = ["ä\n.jpg", "b\udcff.jpg", "sub/[c].jpg"]  # the second is no UTF-8
    ImageIndex(np.eye(3, dtype=np.float16), names, "/vögel", "my model", "0").save(tmp_path / "birds.index")
    loaded = ImageIndex.load(tmp_path / "birds.index")
    assert (list(loaded.files), loaded.folder, loaded.model, loaded.digest) == (names, "/vögel", "my model", "0")


def test_a_damaged_or_foreign_index_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "birds.index"
    with pytest.raises(FileNotFoundError, match=r"there is no index .*birds.index; make it: c2f-zoo index MODEL"):
        ImageIndex.load(path)
    EXAMPLE.save(path)
    whole = path.read_bytes()
    for content in (b"", b"no index", whole[:-3], whole.replace(b"version 1", b"version 2")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"birds.index is .*make it again"):
            ImageIndex.load(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="is not an index of c2f-zoo"):
        ImageIndex.load(path)
    with pytest.raises(ValueError, match="3 files do not fit embeddings of shape"):
        ImageIndex(np.zeros((2, 4)), EXAMPLE.files, "", "", "")


def test_the_digest_depends_on_weights_and_configuration(small_model: C2FModel) -> None:
    before = Embedder(small_model).digest()
    assert Embedder(small_model).digest() == before
    with torch.no_grad():
        small_model.pooling.get_parameter(next(name for name, _ in small_model.pooling.named_parameters())).add_(0.1)
    assert Embedder(small_model).digest() != before
    before = Embedder(small_model).digest()
    small_model.set_config(
        small_model.config.__class__.from_dict({**small_model.config.to_dict(), "resolutions": {"species": 32}})
    )
    assert Embedder(small_model).digest() != before


@pytest.mark.slow
def test_index_has_the_embeddings_of_all_images(folder: Path, index: Path) -> None:
    loaded = ImageIndex.load(index)
    assert list(loaded.files) == [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    embedder = Embedder(create_model(NAME, pretrained=True))
    np.testing.assert_allclose(loaded.embeddings, embedder([folder / file for file in loaded.files]), atol=1e-3)
    assert (loaded.folder, loaded.model, loaded.digest) == (str(folder), NAME, embedder.digest())
    assert load_file(index)["embeddings"].dtype == np.float16


@pytest.mark.slow
def test_similar_prints_the_others_of_the_species_first(folder: Path, index: Path, tmp_path: Path) -> None:
    photo = next(iter(sorted(folder.rglob("*.png"))))
    options = ("--index", str(index), "--top-k", "3", "-o", str(tmp_path / "sheet.png"))
    lines = c2f_zoo("similar", NAME, str(photo), *options).splitlines()
    assert len(lines) == 4  # three files, and where the sheet is
    assert Path(lines[0].split("  ")[1]).parent == photo.parent
    assert str(photo) not in "".join(lines[:3])
    similarities = [float(line.split("  ")[0]) for line in lines[:3]]
    assert similarities == sorted(similarities, reverse=True)
    assert Image.open(tmp_path / "sheet.png").format == "PNG"


@pytest.mark.slow
def test_index_reports_unreadable_images_and_keeps_the_others(folder: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(folder.rglob("*.png"))[:2]):
        (tmp_path / f"{number}.png").write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    code, output, error = run("index", NAME, str(tmp_path), "-o", str(tmp_path / "birds.index"))
    assert (code, output) == (1, f"written to {tmp_path / 'birds.index'}: 2 images\n")
    assert "broken.png" in error and "files without an image extension, left out: 1" in error
    assert list(ImageIndex.load(tmp_path / "birds.index").files) == ["0.png", "1.png"]


@pytest.mark.slow
def test_errors_of_index_and_similar(folder: Path, index: Path, tmp_path: Path) -> None:
    photo = str(next(folder.rglob("*.png")))
    EXAMPLE.save(tmp_path / "other.index")
    error = c2f_zoo("similar", NAME, photo, "--index", str(tmp_path / "other.index"), ok=False)
    assert f"the index is of the model my_model (00000000), not of {NAME}" in error
    assert f"c2f-zoo index {NAME} /birds" in error
    error = c2f_zoo("similar", NAME, photo, "--index", str(index), "-o", "sheet.jpg", ok=False)
    assert "cannot write sheet.jpg: name a file that ends with .png" in error
    error = c2f_zoo("index", NAME, str(tmp_path / "none"), "-o", str(tmp_path / "a.index"), ok=False)
    assert f"there is no folder {tmp_path / 'none'}" in error
    (tmp_path / "broken.png").write_bytes(b"no image")
    error = c2f_zoo("index", NAME, str(tmp_path), "-o", str(tmp_path / "a.index"), ok=False)
    assert "none of the 1 images" in error and not (tmp_path / "a.index").exists()


def test_a_contact_sheet_names_a_missing_image(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"there is no image .*gone\.png"):
        plot_contact_sheet(tmp_path / "a.png", [(tmp_path / "gone.png", 0.5)], tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.slow
def test_recipe_scores_all_test_images_against_the_others_at_full_size(cub_folder: Path, tmp_path: Path) -> None:
    split = cub_folder / "train_test_split.txt"
    swapped = {"0": "1", "1": "0"}  # two test images of each of four species
    split.write_text("".join(f"{line[:-1]}{swapped[line[-1]]}\n" for line in split.read_text().splitlines()))
    frozen = {"backbone": "test_convnext", "taps": None, "input_size": 64}
    options = RetrieveOptions({"birds": str(cub_folder)}, model=NAME, frozen=frozen, output=str(tmp_path / "out"))
    retrieve.main(replace(options, resolutions=[None, 20], search_sizes=[50], bootstrap=10))
    rows = read_csv(tmp_path / "out" / "retrieval.csv")
    assert {(row["embedding"], row["resolution"], row["level"]) for row in rows} == {
        (embedding, resolution, level)
        for embedding in ("model", "average", "frozen")
        for resolution in ("full", "20")
        for level in ("family", "genus", "species")
    }
    model, images = create_model(NAME, pretrained=True).eval(), create_dataset("cub", "test", root=cub_folder)
    gallery = Embedder(model)(images.paths)  # type: ignore[attr-defined]
    small = create_transform(model.config.preprocessing, 20, train=False)
    with torch.no_grad():
        queries = torch.stack([model.embed(small(image)[None])[0] for image, _ in images]).numpy()
    (found,) = [
        row for row in rows if (row["embedding"], row["resolution"], row["level"]) == ("model", "20", "species")
    ]
    precision = []
    for number, label in enumerate(images.targets):
        others = [other for other in range(8) if other != number]
        target = torch.tensor([images.targets[other] == label for other in others])
        precision.append(retrieval_average_precision(torch.tensor(gallery[others] @ queries[number]) + 10, target))
    assert float(found["map"]) == pytest.approx(float(np.mean(precision)), abs=1e-4)
    assert (found["gallery"], found["queries"], found["features"]) == ("8", "8", str(gallery.shape[1]))
    assert [row["images"] for row in read_csv(tmp_path / "out" / "retrieval-search.csv")] == ["50"]


@pytest.mark.slow
def test_recipe_needs_two_images_of_a_class(cub_folder: Path, tmp_path: Path) -> None:
    options = RetrieveOptions({"birds": str(cub_folder)}, model=NAME, frozen=None, output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="no test image has another one of its species"):
        retrieve.main(replace(options, resolutions=[None], search_sizes=[], bootstrap=10))
