"""No float64 on the model's device: MPS has none, and raises an error where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from c2f_zoo import (
    Predictor,
    create_dataset,
    create_model,
    list_decodings,
    list_heads,
    list_losses,
    list_poolings,
    load_hierarchy,
)
from c2f_zoo.data import Augmentation, Views, create_crop
from c2f_zoo.inference import predictor as predictor_module
from c2f_zoo.losses import LOSSES
from c2f_zoo.metrics import TreeMetrics
from c2f_zoo.ops import widest_dtype
from c2f_zoo.pooling import create_pooling
from c2f_zoo.training.dry_run import try_stage
from c2f_zoo.training.objective import create_objective
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.training.setup import build_model
from c2f_zoo.training.stages import set_up_run, start_stage
from c2f_zoo.zoo import num_taps_of

TREE = load_hierarchy("critters")


class NoFloat64(TorchDispatchMode):
    """A device without float64: each operation that returns such a tensor raises an error, as on MPS."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                raise TypeError(f"{func} returns float64")
        return result


def test_the_mode_notices_float64() -> None:
    with NoFloat64(), pytest.raises(TypeError, match="returns float64"):
        torch.zeros(2).double()


@pytest.mark.parametrize("head", list_heads())
def test_heads_losses_decodings_and_metrics(head: str) -> None:
    model = create_model("mlph_tiny_critters", head=head).train()
    labels = TREE.ancestors(torch.tensor([0, 9, 17, 35]))
    with NoFloat64():
        log_probs = model.log_probs(model(torch.rand(4, 3, 96, 96)))
        for name in list_losses():
            LOSSES[name](log_probs["species"], labels[:, 2], TREE).backward(retain_graph=True)
        metrics = TreeMetrics(TREE)
        metrics.update({level: z.detach() for level, z in log_probs.items()}, labels)
        assert all(metrics.report(decoding) for decoding in list_decodings())


@pytest.mark.parametrize("name", list_poolings())
def test_poolings(name: str) -> None:
    maps = [torch.rand(2, 8, 3, 3, requires_grad=True) for _ in range(num_taps_of(name))]
    pooling = create_pooling(name, [8] * len(maps))
    with NoFloat64():
        pooling(maps).sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in maps)


def test_views() -> None:
    preprocessing = create_model("mlph_tiny_critters").config.preprocessing
    with NoFloat64():
        crop = create_crop(preprocessing, Augmentation(), 4)(Image.new("RGB", (120, 100)))
        views = Views(preprocessing, {"species": None, "genus": 32, "family": 12})
        batch = {name: value[None] for name, value in crop.items()}
        assert views(batch, "genus").shape == views.at_random(batch).shape


@pytest.mark.parametrize("values", [{}, {"objective": "joint", "mixup": 0.2, "clip_grad": 1.0, "loss": "hxe"}])
@pytest.mark.slow
def test_steps_of_a_training(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c2f_zoo.training.run_state.widest_dtype", lambda device: widest_dtype(torch.device("mps")))
    small = {"backbone": "test_convnext", "input_size": 32, "pooling": "avg"}
    stages = [Stage(epochs=1, lr=0.02, backbone_lr=0.005)]
    options = TrainOptions("critters", "mlph", {}, stages, model_options=small, batch_size=12, **values)
    dataset = create_dataset("critters", "train", per_class=1)
    model = build_model(options, dataset.hierarchy)
    objective, accelerator = create_objective(options, model), Accelerator(cpu=True)
    run = set_up_run(model, dataset, range(36), objective, options, tmp_path, accelerator)
    state = start_stage(run, stages[0], 1, first_epoch=0)
    with NoFloat64():
        try_stage(run, state)
    assert run.progress.step > 0 and all(total.dtype == torch.float32 for total in run.sums.values())


def test_a_predictor_computes_in_the_widest_type_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (widest_dtype(torch.device("mps")), widest_dtype(torch.device("cuda"))) == (torch.float32, torch.float64)
    predictor = Predictor(create_model("mlph_tiny_critters", pretrained=True))
    image = create_dataset("critters", "test", per_class=1)[7][0]
    exact = predictor(image).path
    head, of_head = predictor.model.head, predictor.model.head.log_probs
    monkeypatch.setattr(predictor_module, "widest_dtype", lambda device: widest_dtype(torch.device("mps")))

    def log_probs(logits: Any) -> Any:
        with NoFloat64():
            assert all(z.dtype == torch.float32 for z in logits.values())
            return of_head(logits)

    monkeypatch.setattr(head, "log_probs", log_probs)
    found = predictor(image).path
    assert [step[:2] for step in found] == [step[:2] for step in exact]
    assert [p for _, _, p in found] == pytest.approx([p for _, _, p in exact], abs=1e-6)
