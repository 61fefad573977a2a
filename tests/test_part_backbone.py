"""The backbone part_rcnn: candidate boxes, the localizer, regions as taps, and models of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import fit_parts
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import train
from drawn_birds import write_birds
from fit_parts import FitOptions
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.ops import box_iou, roi_align

from c2f_zoo import C2FModel, Predictor, create_model
from c2f_zoo.backbones.box_features import box_averages, box_features, box_scores, num_features
from c2f_zoo.backbones.part_rcnn import PartLocalizer, RegionMap, candidate_boxes
from c2f_zoo.cli import app
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import create_transform
from c2f_zoo.io.files import read_csv
from c2f_zoo.io.weights import digest_weights
from c2f_zoo.parts.boxes import overhang, relative_positions
from c2f_zoo.parts.cache import Regions
from c2f_zoo.parts.fitting import boxes_in_input, part_network, set_localizer
from c2f_zoo.parts.geometry import mixture_prior
from c2f_zoo.parts.localize import Localizer
from c2f_zoo.training.options import Stage, TrainOptions
from c2f_zoo.zoo.resolve import resolve

NETWORK: dict[str, Any] = {"network": "test_resnet", "tap": ["layer3"], "scales": [1.0, 0.5], "cells": 3}
PLAIN: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3}


def small(**options: Any) -> C2FModel:
    """Build a small model whose detectors and geometry are random."""
    defaults = {"input_size": 64, "pooling_options": {"dim": 8}, "backbone_options": NETWORK}
    model = create_model("part_rcnn_vgg16_cub", **{**defaults, **options}).eval()
    randomize(part_network(model).localizer)
    return model


def randomize(localizer: PartLocalizer) -> None:
    for buffer in (localizer.weight, localizer.bias, localizer.geometry):
        nn.init.normal_(buffer)


class TestCandidates:
    def test_they_are_distinct_boxes_inside_the_image(self) -> None:
        boxes = candidate_boxes()
        assert boxes[0].tolist() == [0, 0, 1, 1]
        assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)
        assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-6
        size = boxes[:, 2:] - boxes[:, :2]
        assert (size.prod(dim=1).diff() <= 1e-6).all()

    @pytest.mark.parametrize("aspect", [0.6, 1.0, 1.7])
    def test_every_box_of_a_size_overlaps_one_by_half(self, aspect: float) -> None:
        area, generator = 0.3**2, torch.Generator().manual_seed(0)
        size = torch.tensor([(area * aspect) ** 0.5, (area / aspect) ** 0.5])
        start = torch.rand(200, 2, generator=generator) * (1 - size)
        assert box_iou(torch.cat([start, start + size], dim=1), candidate_boxes()).amax(dim=1).min() >= 0.5

    @pytest.mark.parametrize("scales", [[], [0.05], [1.2], [0.5] * 17])
    def test_scales_out_of_range(self, scales: list[float]) -> None:
        with pytest.raises(ValueError, match=r"expected 1 to 16 numbers in \[0.1, 1\]"):
            candidate_boxes(scales)


class TestScores:
    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_averages_are_those_of_roi_align(self, size: int) -> None:
        x, generator = torch.randn(1, 5, 9, 13), torch.Generator().manual_seed(0)
        start = 16 * torch.rand(300, 2, generator=generator) - 4
        boxes = torch.cat([start, start + 14 * torch.rand(300, 2, generator=generator) + 1e-3], dim=1)
        assert torch.allclose(box_averages(x, boxes, size), roi_align(x, [boxes], size, aligned=True), atol=1e-5)

    @pytest.mark.parametrize("channels", [112, 600])
    def test_they_are_a_linear_layer_on_the_features(self, channels: int) -> None:
        x, boxes = torch.randn(2, channels, 9, 11), torch.tensor([[1.5, 2.0, 7.0, 8.5], [-2, -1, 4, 3], [0, 0, 11, 9]])
        linear = nn.Linear(num_features(channels), 3)
        expected = torch.stack([linear(box_features(one[None], boxes)) for one in x])
        found = box_scores(x, boxes, linear.weight, linear.bias)
        assert torch.allclose(found, expected, atol=1e-4)


class TestLocalizer:
    @torch.no_grad()
    def test_it_is_the_best_of_all_configurations(self) -> None:
        localizer, x = PartLocalizer(64, scales=[0.8]), torch.randn(3, 64, 7, 7)
        randomize(localizer)
        for one, found in zip(x, localizer(x), strict=True):
            features = box_features(one[None], 7 * localizer.boxes)
            p = torch.sigmoid(features @ localizer.weight.T + localizer.bias).double().log()
            numbers = range(len(localizer.boxes))
            scores = {
                (root, head, body): p[root, 0]
                + p[head, 1]
                + localizer.geometry[0, root, head]
                + p[body, 2]
                + localizer.geometry[1, root, body]
                for root, head, body in itertools.product(numbers, numbers, numbers)
            }
            best = max(scores, key=lambda key: scores[key].item())
            assert torch.equal(found, localizer.boxes[list(best)])

    def test_a_planted_box_is_found(self) -> None:
        localizer = PartLocalizer(1024, scales=[1.0, 0.5])  # one cell
        planted = localizer.boxes[[30, 40, 50]]
        x = torch.zeros(1, 1024, 28, 28)
        for channel, box in enumerate(planted):
            left, top, right, bottom = (28 * box).round().int().tolist()
            x[0, channel, top:bottom, left:right] = 1
            localizer.weight[channel, channel] = 9  # the box is full ...
            localizer.weight[channel, 1024 + channel] = -3  # ... and its surroundings are not
        assert torch.equal(localizer(x)[0], planted)

    def test_geometry_excludes_pairs(self) -> None:
        localizer = PartLocalizer(64, scales=[0.8])
        localizer.geometry.fill_(-1e9)
        localizer.geometry[:, 4, 7] = 0.0
        assert torch.equal(localizer(torch.rand(1, 64, 7, 7))[0], localizer.boxes[[4, 7, 7]])

    def test_it_is_the_localizer_of_the_parts(self) -> None:
        model, generator = small(), torch.Generator().manual_seed(1)
        own = part_network(model).localizer
        channels = part_network(model).network.out_channels[0]
        detectors = nn.Linear(own.weight.shape[1], 3).requires_grad_(False)
        prior = mixture_prior(torch.randn(30, 2, 4, generator=generator) / 3, components=2)
        localize = Localizer(detectors, prior, alpha=0.2, slack=3.0, max_roots=len(own.boxes))
        set_localizer(model, localize)
        boxes, x = 64 * own.boxes, torch.randn(4, channels, 8, 8)
        for one, found in zip(x, own(x), strict=True):
            regions = Regions(boxes[:3], torch.zeros(3, 1), boxes, box_features(one[None], boxes / 8))
            assert torch.allclose(64 * found, localize(regions).boxes)
        for root, box in itertools.product((0, 5, 40), (0, 20, 50)):
            position = relative_positions(boxes[box].double(), boxes[root].double())
            inside = overhang(boxes[[box]], boxes[[root]]).item() <= 3
            expected = 0.2 * prior(torch.zeros(1))[1].log_prob(position).item() if inside else -1e9
            assert own.geometry[1, root, box].item() == pytest.approx(expected, rel=1e-4)

    def test_other_models_have_no_localizer(self, small_model: C2FModel) -> None:
        with pytest.raises(ValueError, match="'test_convnext' localizes no parts; use 'part_rcnn'"):
            part_network(small_model)


class TestTaps:
    def test_cells_of_a_ramp(self) -> None:
        columns, rows = torch.meshgrid(torch.arange(32.0), torch.arange(16.0), indexing="xy")
        x = torch.stack([columns, rows]).repeat(2, 1, 1, 1)
        boxes = torch.tensor([[0.25, 0.5, 0.75, 0.75], [0.5, 0.25, 0.625, 0.875]])
        found = RegionMap(2)(x, boxes)
        # Cells of the first box are centred at 12 and 20, 9 and 11; the value at pixel i is at i + 0.5.
        assert found[0, 0].tolist() == [[11.5, 19.5], [11.5, 19.5]]
        assert found[0, 1].tolist() == [[8.5, 8.5], [10.5, 10.5]]
        assert found[1, 0].tolist() == [[16.5, 18.5], [16.5, 18.5]]
        assert found[1, 1].tolist() == [[6.0, 6.0], [11.0, 11.0]]

    def test_they_are_the_regions_of_the_network(self) -> None:
        model, x = small(), torch.rand(2, 3, 64, 64)
        assert model.config.taps == ("head", "body", "object")
        plain = timm.create_model("test_resnet", num_classes=0).eval()
        plain.load_state_dict(part_network(model).network.body.state_dict(), strict=False)
        seen: list[Tensor] = []
        plain.layer3.register_forward_hook(lambda module, args, output: seen.append(output))
        plain.forward_features(x)
        boxes = part_network(model).localizer(seen[0])
        assert len(boxes.reshape(-1, 4).unique(dim=0)) > 2
        for number, found in zip((1, 2, 0), model.forward_features(x), strict=True):
            assert torch.equal(found, RegionMap(3)(seen[0], boxes[:, number]))

    def test_as_built_all_regions_are_the_whole_image(self) -> None:
        model = create_model("part_rcnn_vgg16_cub", backbone_options=NETWORK, input_size=64)
        first, *others = model.eval().forward_features(torch.rand(1, 3, 64, 64))
        assert all(torch.equal(first, other) for other in others)

    def test_each_region_has_a_copy_of_the_stage(self, tmp_path: Path) -> None:
        whole = timm.create_model("test_resnet").eval()
        save_file(whole.state_dict(), tmp_path / "resnet.safetensors")
        options = {**NETWORK, "stage": ["layer4"]}
        model = small(backbone_options=options, backbone_checkpoint=tmp_path / "resnet.safetensors")
        x = torch.rand(2, 3, 64, 64)
        tapped = part_network(model).network(x)[0]
        boxes = part_network(model).localizer(tapped)
        for number, found in zip((1, 2, 0), model.forward_features(x), strict=True):
            assert torch.equal(found, whole.layer4(RegionMap(3)(tapped, boxes[:, number])))
        before = model(x)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        F.cross_entropy(before["genus"], torch.arange(2)).backward()
        optimizer.step()
        head, body = (part_network(model).get_submodule(f"{region}.stage").state_dict() for region in ("head", "body"))
        assert any(not torch.equal(weight, body[name]) for name, weight in head.items())
        model.save_pretrained(tmp_path / "model")
        again = create_model(f"local-dir:{tmp_path / 'model'}").eval()
        assert torch.equal(again(x)["genus"], model.eval()(x)["genus"])
        one = {"taps": ["object"], "pooling": "bilinear", "pooling_options": {}, "backbone_options": options}
        assert small(backbone_checkpoint=tmp_path / "resnet.safetensors", **one)(x)["genus"].isfinite().all()
        with pytest.raises(ValueError, match="layer9"):
            small(backbone_options={**NETWORK, "stage": ["layer9"]})

    @pytest.mark.parametrize("pooling", ["hbp", "avg", "bilinear"])
    def test_other_poolings(self, pooling: str) -> None:
        taps = ("object",) if pooling == "bilinear" else ("object", "head", "body")
        model = small(pooling=pooling, taps=taps, head="marginal", hierarchy="cub100", pooling_options={})
        assert {level: tuple(z.shape) for level, z in model(torch.rand(2, 3, 64, 64)).items()} == {
            level: (2, len(model.hierarchy.class_names(level))) for level in model.levels
        }


class TestModel:
    def test_a_saved_model_is_the_same(self, tmp_path: Path) -> None:
        model, x = small(), torch.rand(2, 3, 64, 64)
        model.save_pretrained(tmp_path / "model")
        again = create_model(f"local-dir:{tmp_path / 'model'}").eval()
        assert again.config == model.config
        assert {name: x.tolist() for name, x in again.named_buffers()} == {
            name: x.tolist() for name, x in model.named_buffers()
        }
        before, after = model(x), again(x)
        assert all(torch.equal(before[level], after[level]) for level in model.levels)

    @pytest.mark.slow
    def test_it_exports_with_any_number_of_images(self) -> None:
        model, x = small(), torch.rand(3, 3, 64, 64)
        shapes = {"x": {0: torch.export.Dim("images", min=1, max=8)}}
        with torch.no_grad():
            exported = torch.export.export(model, (x[:2],), dynamic_shapes=shapes).module()
            assert all(torch.equal(z, model(x)[level]) for level, z in exported(x).items())

    def test_training_leaves_the_localizer(self) -> None:
        model = small().train()
        buffers = {name: x.clone() for name, x in part_network(model).localizer.named_buffers()}
        weights = {name: x.detach().clone() for name, x in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        logits = model(torch.rand(4, 3, 64, 64))
        sum(F.cross_entropy(z, torch.arange(4)) for z in logits.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        assert all(torch.equal(x, buffers[name]) for name, x in part_network(model).localizer.named_buffers())
        assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters())
        changed = {name for name, x in model.named_parameters() if not torch.equal(x, weights[name])}
        assert {name for name in weights if name.startswith("head.")} <= changed
        assert "backbone.body.network.body.conv1.weight" in changed or len(changed) > len(weights) / 2

    def test_batch_norm_of_each_level(self) -> None:
        resolutions = {"family": 16, "genus": 32, "species": None}
        model, x = small(batch_norm="per_level", resolutions=resolutions), torch.rand(2, 3, 64, 64)
        before = {level: model(x, [level])[level] for level in model.levels}
        norm = part_network(model).network.body.get_submodule("bn1")
        nn.init.constant_(norm.copies[model.config.norm_copies["genus"]].weight, 2.0)  # type: ignore[index, union-attr]
        changed = {level for level in model.levels if not torch.equal(before[level], model(x, [level])[level])}
        assert changed == {"genus"}

    def test_a_checkpoint_of_the_network(self, tmp_path: Path) -> None:
        whole = timm.create_model("test_resnet")
        save_file(whole.state_dict(), tmp_path / "resnet.safetensors")
        options: dict[str, Any] = {"backbone_options": NETWORK, "input_size": 64}
        model = create_model("part_rcnn_vgg16_cub", backbone_checkpoint=tmp_path / "resnet.safetensors", **options)
        own = part_network(model).network.body.state_dict()
        assert own and all(torch.equal(x, whole.state_dict()[name]) for name, x in own.items())
        save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
        randomize(part_network(model).localizer)
        save_file(part_network(model).state_dict(), tmp_path / "whole.safetensors")
        again = create_model(
            "hbp", backbone="part_rcnn", hierarchy="cub", backbone_checkpoint=tmp_path / "whole.safetensors", **options
        )
        assert digest_weights(part_network(again).state_dict()) == digest_weights(part_network(model).state_dict())
        with pytest.raises(ValueError, match="unexpected keys"):
            create_model("part_rcnn_vgg16_cub", backbone_checkpoint=tmp_path / "vit.safetensors", **options)

    def test_the_preprocessing_is_that_of_the_network(self) -> None:
        options = {"backbone_options": {"network": "tf_efficientnet_lite0"}}
        assert resolve("part_rcnn_vgg16_cub", options).preprocessing.mean == (0.5, 0.5, 0.5)
        assert resolve("part_rcnn_vgg16_cub", {}).preprocessing.mean == Preprocessing().mean

    def test_timm_finds_the_first_layer(self) -> None:
        classifier = small().at_level("genus")
        first = classifier.get_submodule(classifier.pretrained_cfg["first_conv"])
        assert isinstance(first, nn.Conv2d) and first.in_channels == 3

    def test_unknown_networks_and_taps(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'resnet50'"):
            create_model("part_rcnn_vgg16_cub", backbone_options={"network": "resnet5O"})
        with pytest.raises(ValueError, match="layer9"):
            create_model("part_rcnn_vgg16_cub", backbone_options={**NETWORK, "tap": ["layer9"]})


class TestPrediction:
    @pytest.mark.parametrize("size", [(300, 200), (90, 150)])
    def test_boxes_are_those_of_the_image(self, size: tuple[int, int]) -> None:
        model = small(preprocessing_options=PLAIN)
        x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
        image = Image.fromarray(np.stack([x, y, 0 * x], axis=2).round().astype(np.uint8))
        pixels = create_transform(model.config.preprocessing, None, train=False)(image)
        inside = part_network(model).localizer(part_network(model).network(pixels[None])[0])[0]
        boxes = Predictor(model)([image, image])[1].boxes
        assert boxes is not None and list(boxes) == ["object", "head", "body"]
        assert len({*boxes.values()}) > 1
        for own, box in zip(inside, boxes.values(), strict=True):
            left, top, right, bottom = (64 * own).round().int().tolist()
            mean = pixels[:2, top:bottom, left:right].mean(dim=(1, 2))  # x and y as fractions of the image
            assert mean.tolist() == pytest.approx([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], abs=0.02)
            ends = pixels[:2, bottom - 1, right - 1] - pixels[:2, top, left]
            assert ends.tolist() == pytest.approx([box[2] - box[0], box[3] - box[1]], abs=0.04)

    def test_boxes_of_each_level_are_those_at_the_finest(self) -> None:
        resolutions = {"family": 8, "genus": 16, "species": None}
        model = small(resolutions=resolutions)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))
        assert Predictor(model)(image).boxes == Predictor(small_as(model, {}))(image).boxes

    def test_other_models_have_none(self, small_model: C2FModel) -> None:
        prediction = Predictor(small_model)(Image.new("RGB", (80, 70)))
        assert prediction.boxes is None and prediction.to_dict()["boxes"] is None

    def test_boxes_in_the_input_are_where_the_pixels_are(self) -> None:
        p = Preprocessing(input_size=(3, 64, 64), mean=(0.0,) * 3, std=(1.0,) * 3)
        image = Image.new("RGB", (300, 200))
        image.paste((255, 255, 255), (90, 60, 150, 120))
        lit = (create_transform(p, None, train=False)(image)[0] > 0.5).nonzero()
        top, left = lit.amin(dim=0).tolist()
        bottom, right = (lit.amax(dim=0) + 1).tolist()
        found = boxes_in_input(torch.tensor([[90.0, 60.0, 150.0, 120.0]]), 300, 200, p)
        assert found[0].tolist() == pytest.approx([left, top, right, bottom], abs=0.6)


def small_as(model: C2FModel, resolutions: dict[str, int | None]) -> C2FModel:
    """Return a copy of a model with other resolutions."""
    other = small(resolutions=resolutions)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.slow
def test_fitted_trained_and_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    birds, folder = write_birds(tmp_path / "birds"), tmp_path / "fitted"
    network = {"network": "test_convnext", "tap": ["stages", 1]}
    fit_parts.main(
        FitOptions(
            dataset="cub",
            dataset_options={"root": str(birds)},
            model_options={"backbone_options": network, "input_size": 64, "pooling_options": {"dim": 16}},
            val_fraction=0.25,
            max_iter=20,
            bootstrap=50,
            cache=str(tmp_path / "cache"),
            output=str(folder),
        )
    )
    rows = {(row["measure"], row["of"]): float(row["value"]) for row in read_csv(folder / "localization.csv")}
    assert rows["recall at 0.5", "object"] == 1
    assert rows["PCP", "body"] >= 0.6

    before = C2FModel.from_pretrained(folder)
    stage = Stage(epochs=2, lr=0.1, backbone_lr=0.0)
    data = {"dataset_options": {"root": str(birds)}, "batch_size": 4, "val_fraction": 0.25}
    options = TrainOptions("cub", f"local-dir:{folder}", {}, [stage], output=str(tmp_path / "run"), **data)
    train.main(options, "run")
    after = C2FModel.from_pretrained(tmp_path / "run")
    for name, x in part_network(before).state_dict().items():
        assert torch.equal(x, part_network(after).state_dict()[name]), name
    assert digest_weights(before.head.state_dict()) != digest_weights(after.head.state_dict())
    capsys.readouterr()
    file = next((birds / "images").rglob("*.png"))
    app(["predict", str(tmp_path / "run"), str(file), "--json"], standalone_mode=False)
    (data,) = json.loads(capsys.readouterr().out)
    assert [len(box) for box in data["boxes"].values()] == [4, 4, 4]
