"""The examples in docstrings run and give the output shown."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import c2f_zoo
from c2f_zoo.backbones import TapBackbone
from c2f_zoo.config import Preprocessing
from c2f_zoo.data import Augmentation, create_crop, create_views

MODULES = sorted(module.name for module in pkgutil.walk_packages(c2f_zoo.__path__, "c2f_zoo."))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    public = {key: getattr(c2f_zoo, key) for key in c2f_zoo.__all__}
    names = {"np": np, "timm": timm, "torch": torch, "Image": Image} | public | vars(module)
    names |= {"Preprocessing": Preprocessing, "TapBackbone": TapBackbone, "create_views": create_views}
    names |= {"Augmentation": Augmentation, "create_crop": create_crop}
    failed = doctest.testmod(module, extraglobs=names, optionflags=doctest.IGNORE_EXCEPTION_DETAIL).failed
    assert failed == 0
