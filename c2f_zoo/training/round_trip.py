"""A check before training: the saved model must load, and predict the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from c2f_zoo.model import C2FModel
from c2f_zoo.training.options import TrainOptions

TOLERANCE = 0.01  # of the largest logit


def check_round_trip(model: C2FModel, options: TrainOptions, output: Path, accelerator: Accelerator) -> None:
    """Save a model, load it, and check that it predicts the same; nothing is kept.

    Args:
        model: the model, before training.
        options: the options; a compiled model is not run, because that would compile another graph.
        output: the run's folder.
        accelerator: the processes; all must call this function, and the main process checks.

    Raises:
        ValueError: the model cannot be saved or loaded, or predicts something else afterwards.
        OSError: the folder cannot be written.
    """
    found: list[Exception | None] = [None]
    if accelerator.is_main_process:
        folder = output / "round-trip.part"
        try:
            model.save_pretrained(folder)
            loaded = C2FModel.from_pretrained(folder)
            if not options.compile:
                compare_predictions(model, loaded, options)
        except Exception as error:  # raised in all processes
            found = [error]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if (first := broadcast_object_list(found)[0]) is not None:
        raise first


@torch.no_grad()
def compare_predictions(model: C2FModel, loaded: C2FModel, options: TrainOptions) -> None:
    """Compare the logits of a model before and after it was saved, for one image of noise.

    Args:
        model: the model; it is put into evaluation mode.
        loaded: the model that was loaded.
        options: the options; `channels_last` is used.

    Raises:
        ValueError: they differ.
    """
    weight = next(model.parameters())
    loaded = loaded.to(weight.device)
    if options.channels_last:  # the same kernels, or rounding differs
        loaded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *model.config.preprocessing.input_size, generator=generator).to(weight.device, weight.dtype)
    expected, found = (_logits(chosen, image) for chosen in (model, loaded))
    for level, logits in expected.items():
        difference = (found[level] - logits).abs().max().item()
        if not difference <= TOLERANCE * logits.abs().max().item():  # also of a difference that is not a number
            raise ValueError(
                f"the saved model predicts something else after it is loaded (logits of {level} differ by "
                f"{difference:.2g}): a part keeps values outside its parameters and buffers. Register them with "
                "register_buffer, or make them options of the part"
            )


def _logits(model: C2FModel, image: Tensor) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[image.device] if image.device.type == "cuda" else []):
        torch.manual_seed(0)
        return model.eval()(image)
