"""Exported files and their predictor, against PyTorch; and without it, in a new process."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_batch_norm import build
from test_cli import c2f_zoo

from c2f_zoo import C2FModel, Prediction, Predictor, create_dataset, create_model
from c2f_zoo.data import labels_of
from c2f_zoo.inference.export import export_model
from c2f_zoo.inference.export_files import export_file
from c2f_zoo.inference.exported import EXTRA_FILE, METADATA_KEY, ExportedModel, select_views
from c2f_zoo.inference.image_predictor import ImagePredictor, PreparedImage
from c2f_zoo.inference.onnx import OnnxPredictor
from c2f_zoo.inference.quantize import quantize_int8

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.7", reason="torch 2.6 cannot export an autograd.Function with an open batch"
)

LEVELS = ("family", "genus", "species")


@pytest.fixture(scope="module")
def model() -> C2FModel:
    return create_model("mlph_tiny_critters", pretrained=True).eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    dataset = create_dataset("critters", "test", per_class=1)
    found = [dataset[index][0] for index in range(0, 36, 3)]
    return [image.resize((13, 17)) if number % 3 == 2 else image for number, image in enumerate(found)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "critters.onnx"
    line = export_file("mlph_tiny_critters", path)
    start = f"written to {path}: family, genus, species, float32, images (N, 3, 96, 96); probabilities of noise differ"
    assert line.startswith(start)
    assert float(line.split()[-1]) < 1e-5
    return path


def log_probs(predictor: ImagePredictor, views: list[Any]) -> dict[str, np.ndarray]:
    """Return log-probabilities of the same views of images."""
    return predictor.head_log_probs([PreparedImage(view, 0.0) for view in views])


def assert_equal(found: Prediction, expected: Prediction, atol: float = 0.02) -> None:
    """Assert that two predictions agree but for the rounding of pixels."""
    for steps, others in ((found.path, expected.path), (found.trusted_path, expected.trusted_path)):
        assert [step[:2] for step in steps] == [step[:2] for step in others]
        assert [p for _, _, p in steps] == pytest.approx([p for _, _, p in others], abs=atol)
    assert [step[:2] for step in found.guess] == [step[:2] for step in expected.guess]
    for level, p in expected.probabilities.items():
        np.testing.assert_allclose(found.probabilities[level], p, atol=atol)
    of = expected.provenance
    assert found.provenance == replace(of, detail=pytest.approx(of.detail, rel=1e-4))
    assert (found.tree, found.file) == (expected.tree, expected.file)


@pytest.mark.slow
def test_the_network_is_that_of_pytorch(model: C2FModel, file: Path) -> None:
    noise = torch.randn(3, *model.config.preprocessing.input_size)
    expected = log_probs(Predictor(model), [{None: x} for x in noise])
    found = log_probs(OnnxPredictor(file), [{None: x.numpy()} for x in noise])
    assert list(found) == list(expected) == list(LEVELS)
    for level in LEVELS:
        np.testing.assert_allclose(found[level], expected[level], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"risk": 0.02}, {"only": ["Rotundidae", "Tessula"]}, {"level": "genus", "batch_size": 5}]
)
def test_the_file_predicts_as_the_model(
    model: C2FModel, file: Path, images: list[Image.Image], options: dict[str, Any]
) -> None:
    predictors: list[ImagePredictor] = [Predictor(model, **options), OnnxPredictor(file, **options)]
    expected, found = (predictor(images) for predictor in predictors)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)
    assert any(one.guess for one in found) or options.get("only")
    assert_equal(*(predictor.group(images[:3]) for predictor in reversed(predictors)))


WITHOUT_TORCH = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "onnx", "onnxscript", "accelerate"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from c2f_zoo.inference.onnx import OnnxPredictor

prediction = OnnxPredictor(sys.argv[1], only=["Rotundidae"])(sys.argv[2])
print(json.dumps(prediction.to_dict()), file=sys.stderr)
sys.argv = ["c2f-zoo", "predict", sys.argv[1], sys.argv[2], "--only", "Rotundidae", "--json"]
from c2f_zoo.cli import main
main()
"""


@pytest.mark.slow
def test_prediction_needs_no_pytorch(file: Path, images: list[Image.Image], tmp_path: Path) -> None:
    images[0].save(tmp_path / "1.png")
    arguments = [str(file), str(tmp_path / "1.png")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (printed,) = json.loads(done.stdout)
    assert printed.pop("error") is None
    assert printed == json.loads(done.stderr.splitlines()[-1])
    expected = OnnxPredictor(file, only=["Rotundidae"])(tmp_path / "1.png").to_dict()
    assert printed["trusted"]["name"] == expected["trusted"]["name"]
    assert printed["provenance"]["group"] == expected["provenance"]["group"]
    for one, other in zip(printed["path"], expected["path"], strict=True):
        assert one == {**other, "probability": pytest.approx(other["probability"], abs=1e-6)}


@pytest.mark.slow
def test_half_precision_and_a_batch_norm_and_input_for_each_resolution(tmp_path: Path) -> None:
    model = build(resolutions={"genus": 32, "family": 32}).eval()
    exported = export_model(model, tmp_path / "half.onnx", dtype="float16")
    assert exported.inputs == {"images_32": ("family", "genus"), "images": ("species",)}
    weights = {one.name: one.data_type for one in onnx.load(tmp_path / "half.onnx").graph.initializer}
    of_model = [kind for name, kind in weights.items() if name.endswith(".weight")]
    assert of_model and set(of_model) == {onnx.TensorProto.FLOAT16}
    views = [{at: torch.randn(3, 64, 64) for at in (32, None)} for _ in range(3)]
    expected = log_probs(Predictor(model), views)
    arrays = [{at: x.numpy() for at, x in view.items()} for view in views]
    for level, z in log_probs(OnnxPredictor(tmp_path / "half.onnx"), arrays).items():
        np.testing.assert_allclose(z, expected[level], atol=0.02)
        assert np.ptp(expected[level]) > 0.2


@pytest.mark.slow
def test_8_bit_integers(file: Path, tmp_path: Path) -> None:
    dataset = create_dataset("critters", "train", per_class=2)
    quantize_int8(file, tmp_path / "int8.onnx", [dataset[index][0] for index in range(len(dataset))])
    test = create_dataset("critters", "test", per_class=2)
    images = [test[index][0] for index in range(len(test))]
    small, single = OnnxPredictor(tmp_path / "int8.onnx"), OnnxPredictor(file)
    assert small.exported == replace(single.exported, dtype="int8")
    same = [a.path[-1][:2] == b.path[-1][:2] for a, b in zip(small(images), single(images), strict=True)]
    assert np.mean(same) > 0.9
    assert (tmp_path / "int8.onnx").stat().st_size < 0.7 * file.stat().st_size
    weights = [node.input[1] for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "Conv"]
    is_quantized = [name.endswith("DequantizeLinear_Output") for name in weights]
    assert is_quantized == [False] * 3 + [True] * (len(weights) - 3)
    assert len(weights) > 10
    with pytest.raises(ValueError, match="is int8; quantize a float32 file"):
        quantize_int8(tmp_path / "int8.onnx", tmp_path / "again.onnx", images)
    with pytest.raises(ValueError, match="no images to quantize with"):
        quantize_int8(file, tmp_path / "again.onnx", [])


@pytest.mark.slow
def test_one_input_serves_several_resolutions(file: Path, model: C2FModel, images: list[Image.Image]) -> None:
    predictor, found = Predictor(model), OnnxPredictor(file)
    predictor.levels_at = {12: ("family",), 32: ("genus",), None: ("species",)}
    views = [{at: torch.randn(3, 96, 96) for at in predictor.levels_at} for _ in range(4)]
    expected = log_probs(predictor, views)
    found.exported = replace(found.exported, views=select_views(predictor.levels_at, LEVELS, one_input=True))
    arrays = [{at: x.numpy() for at, x in view.items()} for view in views]
    for level, z in log_probs(found, arrays).items():
        np.testing.assert_allclose(z, expected[level], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "is_calibrated"), [(["species"], True), (["genus", "family"], False)])
def test_some_levels_as_a_program_of_torch_export(
    model: C2FModel, levels: list[str], is_calibrated: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exported = export_model(model, tmp_path / "model.pt2", "torch_export", levels)
    assert (exported.calibration is not None) == is_calibrated
    assert ("needs levels that are not exported" in caplog.text) != is_calibrated
    extra = {EXTRA_FILE: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert ExportedModel.from_json(extra[EXTRA_FILE], "model.pt2") == exported
    assert exported.config.levels == tuple(level for level in LEVELS if level in levels)
    for count in (1, 5):
        x = torch.randn(count, 3, 96, 96)
        with torch.no_grad():
            expected = model.log_probs(model(x))
            outputs = program(x)
        for level, z in zip(exported.config.levels, outputs, strict=True):
            torch.testing.assert_close(z, expected[level])


@pytest.mark.slow
def test_any_size(small_model: C2FModel, tmp_path: Path) -> None:
    export_model(small_model, tmp_path / "model.pt2", "torch_export", any_size=True)
    program, x = torch.export.load(tmp_path / "model.pt2").module(), torch.randn(3, 3, 96, 160)
    with torch.no_grad():
        expected = small_model.log_probs(small_model(x))
        outputs = program(x)
    for level, z in zip(small_model.levels, outputs, strict=True):
        torch.testing.assert_close(z, expected[level])


@pytest.mark.slow
def test_a_network_that_cannot_be_exported_is_an_error(small_model: C2FModel, tmp_path: Path) -> None:
    small_model.head.register_forward_pre_hook(
        lambda head, inputs: inputs[0].tolist()
    )  # values are not known in a trace
    message = r"^test_convnext cannot be exported to torch_export: .+; leave its size fixed$"
    with pytest.raises(ValueError, match=message):
        export_model(small_model, tmp_path / "model.pt2", "torch_export", any_size=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_commands(file: Path, tmp_path: Path) -> None:
    program = tmp_path / "genus.pt2"
    options = ["--format", "torch_export", "--levels", "genus", "-o", str(program)]
    output = c2f_zoo("export", "mlph_tiny_critters", *options, columns=200)
    assert output == f"written to {program}: genus, float32, images (N, 3, 96, 96)\n"
    Image.new("RGB", (96, 96)).save(tmp_path / "black.png")
    black, table = str(tmp_path / "black.png"), str(tmp_path / "table.csv")
    assert c2f_zoo("predict", str(file), black) == f"{OnnxPredictor(file)(black)}\n"
    c2f_zoo("predict", "mlph_tiny_critters", black, "--csv", table)
    error = c2f_zoo("predict", str(file), black, "--csv", table, ok=False)
    assert "table.csv" in error


def test_wrong_options_are_errors_in_one_line(model: C2FModel, tmp_path: Path) -> None:
    target = tmp_path / "a.onnx"
    for options, message in [
        ({"format": "tflite"}, "unknown format 'tflite'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"levels": ["kind"]}, "unknown level 'kind'"),
    ]:
        with pytest.raises(ValueError, match=message):
            export_model(model, target, **options)
    error = c2f_zoo("export", "m", "-o", str(target), "--dtype", "float16", "--int8", str(tmp_path), ok=False)
    assert "int8 excludes the format onnx with float16" in error
    assert not target.exists()


def test_missing_packages_are_named_with_the_way_to_install_them(
    model: C2FModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'c2f_zoo\[onnx\]'"):
        export_model(model, tmp_path / "a.onnx")
    with pytest.raises(ImportError, match=r"need onnxruntime: pip install 'c2f_zoo\[onnx\]'"):
        OnnxPredictor(tmp_path / "a.onnx")
    assert "c2f-zoo: ONNX files need onnxruntime" in c2f_zoo("predict", "a.onnx", "1.png", ok=False)


def identity_file(path: Path, metadata: str | None) -> Path:
    """Write an ONNX file that returns its input."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 2]) for name in ("images", "kind")]
    node = onnx.helper.make_node("Identity", ["images"], ["kind"])
    graph = onnx.helper.make_graph([node], "graph", value[:1], value[1:])
    proto = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    if metadata is not None:
        onnx.helper.set_model_props(proto, {METADATA_KEY: metadata})
    onnx.save(proto, path)
    return path


def metadata_of(model: C2FModel) -> dict[str, Any]:
    """Return the metadata of an export of a model with one resolution, as data."""
    views = [{"input": "images", "resolution": None, "levels": list(LEVELS)}]
    head = {"format": 1, "version": "0", "dtype": "float32", "levels_are_marginals": False, "views": views}
    return {**head, "calibration": model.calibration, "config": model.config.to_dict()}


def test_files_that_are_no_exports_are_refused(model: C2FModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none.onnx; make one with `c2f-zoo export MODEL -o"):
        OnnxPredictor(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ValueError, match=r"text.onnx is no ONNX file"):
        OnnxPredictor(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="has no metadata of c2f_zoo; make a file with"):
        OnnxPredictor(identity_file(tmp_path / "other.onnx", None))
    text = json.dumps(metadata_of(model))
    with pytest.raises(ValueError, match=r"has the inputs \['images'\] and outputs \['kind'\]; its metadata name"):
        OnnxPredictor(identity_file(tmp_path / "other.onnx", text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: [], "expected an object with the keys"),
        (lambda data: {**data, "format": 2}, "the format is 2; this c2f_zoo reads 1"),
        (lambda data: {**data, "dtype": "int4"}, "unknown dtype 'int4'"),
        (lambda data: {**data, "levels_are_marginals": 1}, "levels_are_marginals is 1, expected true or false"),
        (lambda data: {**data, "views": data["views"] * 2}, "the views predict the levels"),
        (lambda data: {**data, "views": [{"input": 1}]}, "missing keys in View: resolution, levels"),
        (lambda data: {**data, "calibration": {"rule": "x"}}, "invalid calibration"),
        (lambda data: {**data, "config": {**data["config"], "levels": ["kind"]}}, "unknown level 'kind'"),
        (lambda data: {**data, "config": {**data["config"], "backbone_options": {"file": "/"}}}, "backbone_options"),
    ],
)
def test_invalid_metadata_are_named(model: C2FModel, change: Callable[[Any], Any], message: str) -> None:
    data = metadata_of(model)
    assert ExportedModel.from_json(json.dumps(data), "a.onnx").to_json() == json.dumps(data, ensure_ascii=False)
    with pytest.raises(ValueError, match=rf"a.onnx: invalid metadata: .*{message}.*; export the model again"):
        ExportedModel.from_json(json.dumps(change(data)), "a.onnx")


def test_outputs_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    import onnxruntime

    path = identity_file(tmp_path / "a.onnx", None)
    predictor = object.__new__(OnnxPredictor)
    predictor.session = onnxruntime.InferenceSession(path)
    predictor.feeds = lambda images: [({"images": np.array([[0, np.nan], [0, 1]], np.float32)}, ["kind"])]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="outputs at 'kind' are not finite for 1 of 2 images"):
        predictor.head_log_probs([])


# The recipes that measure exported files.


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Import a benchmark as a new process does."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "recipes" / "benchmarks")
    yield importlib.import_module(request.param)
    del sys.modules[request.param]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["exported"], indirect=True)
def test_the_comparison_counts_right_and_same_classes(
    recipe: ModuleType, model: C2FModel, file: Path, tmp_path: Path
) -> None:
    biased = onnx.load(file)
    (bias,) = [one for one in biased.graph.initializer if one.name.endswith("classifiers.1.bias")]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[5] += 100  # the file predicts this genus always
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(biased, tmp_path / "biased.onnx")
    dataset, indices = create_dataset("critters", "test", per_class=1), list(range(0, 36, 2))
    files = {"float32": file, "int8": tmp_path / "biased.onnx"}
    rows = {(row["dtype"], row["level"]): row for row in recipe.score(model, files, dataset, indices, None, 7)}
    predictor = Predictor(model, level="genus")
    genera = [labels_of(dataset)[index, 1].item() for index in indices]
    found = [int(np.argmax(predictor(dataset[index][0]).probabilities["genus"])) for index in indices]
    right = np.mean([a == b for a, b in zip(found, genera, strict=True)])
    assert (
        rows["PyTorch", "genus"]["accuracy"] == rows["float32", "genus"]["accuracy"] == pytest.approx(right, abs=1e-5)
    )
    assert rows["float32", "species"]["same"] == rows["int8", "species"]["same"] == 1
    assert rows["int8", "genus"]["accuracy"] == pytest.approx(np.mean(np.array(genera) == 5), abs=1e-5)
    assert rows["int8", "genus"]["same"] == pytest.approx(np.mean(np.array(found) == 5), abs=1e-5)
    assert recipe.compare_trusted(model, {"float32": file}, dataset, indices, 7) == {"PyTorch": 1, "float32": 1}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["latency"], indirect=True)
def test_all_runtimes_predict_the_same_batches(recipe: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outputs = {}
    for runtime in ("eager", "onnx float32"):
        torch.manual_seed(0)
        calls = recipe.calls_of(runtime, "mlph_tiny_critters", {"onnx float32": file}, (1, 3), 1)
        assert list(calls) == ["1", "3"]
        outputs[runtime] = calls["3"]()
    for found, expected in zip(outputs["onnx float32"], outputs["eager"], strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
    row = recipe.row_of("birds", "eager", 3, {"1": 2.0, "3": 4.0, "mm_gflops": 99.0}, 1, 5)
    assert (row["ms"], row["images_s"], row["batch"], row["threads"]) == (4.0, 750.0, 3, 1)
