"""Export of every pooling and head, and of models: torch.export, and both ONNX exporters run by onnxruntime."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from reference.poolings import REFERENCES
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from c2f_zoo import C2FModel, create_model
from c2f_zoo.evaluation.provenance import describe_machine
from c2f_zoo.heads import create_head, list_heads
from c2f_zoo.io.files import read_csv, write_csv
from c2f_zoo.ops import choice, products, sketch, sum_groups
from c2f_zoo.pooling import create_pooling, list_poolings
from c2f_zoo.testing import irregular_hierarchy

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results" / "export.csv"
TRACING = "torch.onnx.export, dynamo=False"
STRICT = "torch.export, strict"

Inputs = tuple[Any, ...]
Exporter = Callable[[nn.Module, Inputs, Inputs], list[Tensor]]

onnxruntime.set_default_logger_severity(3)  # of shapes that the older exporter leaves open

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.7", reason="torch 2.6 cannot export an autograd.Function with an open batch"
)


def open_batch(inputs: Inputs) -> Any:
    """Return `dynamic_shapes` in which the first dimension of each input is the batch."""
    batch = torch.export.Dim("batch", min=1, max=64)
    return tree_map(lambda x: {0: batch}, inputs)


def by_torch(strict: bool) -> Exporter:
    def export(module: nn.Module, inputs: Inputs, others: Inputs) -> list[Tensor]:
        program = torch.export.export(module, inputs, strict=strict, dynamic_shapes=open_batch(inputs))
        return tree_leaves(program.module()(*others))

    return export


def by_onnx(dynamo: bool) -> Exporter:
    def export(module: nn.Module, inputs: Inputs, others: Inputs) -> list[Tensor]:
        names = [f"input_{number}" for number in range(len(tree_leaves(inputs)))]
        options: dict[str, Any] = {"dynamic_shapes": open_batch(inputs)}
        if not dynamo:
            options = {"input_names": names, "dynamic_axes": {name: {0: "batch"} for name in names}}
        file = io.BytesIO()
        torch.onnx.export(module, inputs, file, dynamo=dynamo, verbose=False, **options)
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        arrays = {x.name: y.numpy() for x, y in zip(session.get_inputs(), tree_leaves(others), strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, arrays)]

    return export


EXPORTERS: dict[str, Exporter] = {
    "torch.export": by_torch(strict=False),
    STRICT: by_torch(strict=True),
    "torch.onnx.export": by_onnx(dynamo=True),
    TRACING: by_onnx(dynamo=False),
}


class AllLevels(nn.Module):
    """A head with its levels, which are no tensors, and its log-probabilities: they are in an exported file."""

    def __init__(self, head: nn.Module, levels: tuple[str, ...]) -> None:
        super().__init__()
        self.head, self.levels = head, levels

    def forward(self, v: Tensor) -> dict[str, Tensor]:
        return self.head.log_probs(self.head(v, self.levels))


def pooling_case(name: str) -> tuple[nn.Module, Inputs, Inputs]:
    reference = REFERENCES[name]
    pooling = create_pooling(name, reference.channels, **reference.options)
    return pooling, *(([torch.randn(n, c, 4, 3) for c in reference.channels],) for n in (2, 3))


def head_case(name: str) -> tuple[nn.Module, Inputs, Inputs]:
    tree = irregular_hierarchy(3)
    return AllLevels(create_head(name, 5, tree, tree.levels), tree.levels), (torch.randn(2, 5),), (torch.randn(3, 5),)


def model_case(name: str) -> tuple[nn.Module, Inputs, Inputs]:
    model: C2FModel = create_model("mlph_tiny_critters", pretrained=True)
    size = model.config.preprocessing.input_size
    module = model if name == "all levels" else model.at_level(name)
    return module, (torch.randn(2, *size),), (torch.randn(3, *size),)


CASES: dict[str, tuple[Callable[[str], tuple[nn.Module, Inputs, Inputs]], list[str]]] = {
    "pooling": (pooling_case, list_poolings()),
    "head": (head_case, list_heads()),
    "mlph_tiny_critters": (model_case, ["all levels", "species"]),
}
ALL_CASES = [(kind, name) for kind, (_, names) in CASES.items() for name in names]


def expected_of(module: nn.Module, others: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return tree_leaves(module.eval()(*others))


def largest_differences(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    assert [x.shape for x in found] == [x.shape for x in expected]
    return [float((x - y).abs().max() / y.abs().max().clamp(min=1)) for x, y in zip(found, expected, strict=True)]


def differences(module: nn.Module, inputs: Inputs, others: Inputs, exporter: str) -> list[float]:
    """Export with two images, run with three others; return each output's largest difference from PyTorch's."""
    expected = expected_of(module, others)
    return largest_differences(EXPORTERS[exporter](module, inputs, others), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, about the older exporter and traced Python values
@pytest.mark.parametrize(("kind", "name"), [case for case in ALL_CASES if case[1] != "species"])
def test_exported_programs_give_the_same(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test three exporters; `-m soak` tests strict exports and a level of a model too.

    Strict exports take as long as the others together: test_taps.py has some. The test below exports a level.
    """
    monkeypatch.setattr(choice, "SMALL", 0)  # so that this size would have operators of our own outside an export
    monkeypatch.setattr(products, "_LARGE", 0)
    module, inputs, others = CASES[kind][0](name)
    expected = expected_of(module, others)
    program: Any = torch.export.export(module, inputs, dynamic_shapes=open_batch(inputs))
    found = {
        "torch.export": tree_leaves(program.module()(*others)),
        "torch.onnx.export": EXPORTERS["torch.onnx.export"](program, inputs, others),  # a module is exported first
        TRACING: EXPORTERS[TRACING](module, inputs, others),
    }
    for exporter, outputs in found.items():
        assert max(largest_differences(outputs, expected)) < 2e-5, exporter


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("backbone", "level"), [("test_vit", "genus"), ("test_resnet", None)])
def test_exported_models_with_tokens_or_maps_of_several_sizes(backbone: str, level: str | None) -> None:
    options = {"dim": 8, "align": "pool"}
    model = create_model(
        "mlph", backbone=backbone, hierarchy="critters", input_size=64, head="hex", pooling_options=options
    )
    module = model if level is None else model.at_level(level)
    inputs, others = (torch.randn(2, 3, 64, 64),), (torch.randn(3, 3, 64, 64),)
    for exporter in ("torch.onnx.export", TRACING):
        assert max(differences(module, inputs, others, exporter)) < 2e-5, exporter


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("dtype", "sizes", "missing"),
    [(torch.float16, (4, 4), "aten::exp2"), (torch.float32, (7, 3), "output size that are not factor of input size")],
)
def test_exceptions_of_the_exporter_by_tracing(dtype: torch.dtype, sizes: tuple[int, int], missing: str) -> None:
    pooling = create_pooling("mlp", (3, 4), dim=5, align="pool").to(dtype)
    inputs = ([torch.randn(2, c, size, size, dtype=dtype) for c, size in zip((3, 4), sizes, strict=True)],)
    assert max(differences(pooling, inputs, inputs, "torch.onnx.export")) < (2e-3 if dtype == torch.float16 else 2e-5)
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=missing):
        differences(pooling, inputs, inputs, TRACING)


@pytest.mark.parametrize("dim", [1, 2, 5, 8])
def test_convolutions_without_complex_numbers_are_those_of_the_definition(dim: int) -> None:
    vectors = list(torch.randn(3, 2, dim, 4, dtype=torch.float64))
    first, second, third = vectors
    pair = torch.zeros_like(first)
    for i, j in itertools.product(range(dim), range(dim)):
        pair[:, (i + j) % dim] += first[:, i] * second[:, j]
    triple = torch.zeros_like(first)
    for i, j in itertools.product(range(dim), range(dim)):
        triple[:, (i + j) % dim] += pair[:, i] * third[:, j]
    for convolve in (sketch._convolve_by_fft, sketch._convolve_by_matrices):
        found = convolve(vectors)
        for x, expected in zip(found, (first, pair, triple), strict=True):
            torch.testing.assert_close(x, expected.sum(dim=2))


def test_sums_of_groups_in_an_export_are_the_same() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sum_groups(x, torch.tensor([2, 0, 2, 2]), 4)

    for shape in ((3, 4), (3, 4, 5)):
        x = torch.randn(shape, dtype=torch.float64)
        expected = torch.stack([x[:, 1], torch.zeros_like(x[:, 0]), x[:, 0] + x[:, 2] + x[:, 3], 0 * x[:, 0]], dim=1)
        torch.testing.assert_close(Sums()(x), expected)
        torch.testing.assert_close(torch.export.export(Sums(), (x,)).module()(x), expected)


def test_the_results_are_of_all_parts_and_exporters() -> None:
    rows = read_csv(RESULTS)
    assert [(row["kind"], row["name"], row["exporter"]) for row in rows] == [
        (*case, exporter) for case in ALL_CASES for exporter in EXPORTERS
    ]


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_write_the_results() -> None:
    """Write the largest difference of every part and exporter."""
    versions = {name: version(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    rows: list[dict[str, Any]] = []
    for kind, name in ALL_CASES:
        case = CASES[kind][0](name)
        for exporter in EXPORTERS:
            difference = f"{max(differences(*case, exporter)):.2e}"
            row = {"kind": kind, "name": name, "exporter": exporter, "difference": difference}
            rows.append({**row, "command": "pytest -m soak tests/test_export.py", **describe_machine(), **versions})
    write_csv(RESULTS, rows)
    assert all(float(row["difference"]) < 2e-5 for row in rows)
