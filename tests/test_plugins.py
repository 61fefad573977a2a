"""Plug-ins of installed packages: listed without import, harmless if broken."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import c2f_zoo
from c2f_zoo.backbones import BACKBONES
from c2f_zoo.data import DATASETS
from c2f_zoo.decoding import DECODINGS
from c2f_zoo.heads import HEADS
from c2f_zoo.hierarchy import HIERARCHIES
from c2f_zoo.inference.trust import RULES
from c2f_zoo.losses import LOSSES
from c2f_zoo.metrics import METRICS, TreeMetrics
from c2f_zoo.pooling import POOLINGS
from c2f_zoo.registry import PluginError, Registry
from c2f_zoo.zoo import MODELS, WEIGHTS

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests" / "plugin_example"
REGISTRIES = {
    "poolings": POOLINGS,
    "models": MODELS,
    "backbones": BACKBONES,
    "heads": HEADS,
    "hierarchies": HIERARCHIES,
    "datasets": DATASETS,
    "decodings": DECODINGS,
    "losses": LOSSES,
    "metrics": METRICS,
    "rules": RULES,
}

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a package: name, entry points, code."""
    for registry in (*REGISTRIES.values(), WEIGHTS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))  # type: ignore[attr-defined]
        monkeypatch.setattr(registry, "_plugins", None)
    modules: list[str] = []

    def install(name: str, points: str, code: str) -> None:
        site = tmp_path / name
        info = site / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(points)
        (site / f"{name}_code.py").write_text(code)
        modules.append(f"{name}_code")
        monkeypatch.syspath_prepend(site)

    yield install
    for module in modules:
        sys.modules.pop(module, None)


NEW = {
    "poolings": "from c2f_zoo.pooling.mlp import MlpPooling as new",
    "models": "from c2f_zoo.zoo import ModelSpec; new = ModelSpec('mlph', 'test_convnext', 'cub')",
    "backbones": "def new(pretrained=False): ...",
    "heads": "from c2f_zoo.heads.levels import LevelsHead as new",
    "hierarchies": "def new(): ...",
    "datasets": "def new(split): ...",
    "decodings": "def new(log_probs, hierarchy): ...",
    "losses": "def new(log_probs, labels, tree): ...",
    "metrics": "from c2f_zoo.metrics import FullPathAccuracy as new",
    "rules": "from c2f_zoo.inference.trust import climb as new",
}


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_plugin_is_listed_before_it_is_imported(kind: str, install: Install) -> None:
    install("fine", f"[c2f_zoo.{kind}]\nnew_one = fine_code:new\n", NEW[kind])
    assert "new_one" in getattr(c2f_zoo, f"list_{kind}")("new_*")
    assert "new_one" in REGISTRIES[kind]  # type: ignore[operator]
    assert "fine_code" not in sys.modules
    assert REGISTRIES[kind]["new_one"] is sys.modules["fine_code"].new  # type: ignore[index]


def test_one_model_of_six_kinds_of_plugins(install: Install) -> None:
    code = """
from torch import nn
from c2f_zoo import Hierarchy
from c2f_zoo.heads.levels import LevelsHead
from c2f_zoo.pooling.mlp import MlpPooling
from c2f_zoo.zoo import ModelSpec

class Head(LevelsHead): ...

def body(pretrained=False):
    return nn.Sequential(*[nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.ReLU()) for c in (3, 8, 8)])

def tree():
    return Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("round", "ring"), ("edged", "box")])

model = ModelSpec("mlph", "my_body", "my_tree")
"""
    points = """
[c2f_zoo.models]
my_model = fine_code:model
[c2f_zoo.backbones]
my_body = fine_code:body
[c2f_zoo.hierarchies]
my_tree = fine_code:tree
[c2f_zoo.poolings]
my_pooling = fine_code:MlpPooling
[c2f_zoo.heads]
my_head = fine_code:Head
"""
    install("fine", points, code)
    options = {"pooling": "my_pooling", "head": "my_head", "pooling_options": {"dim": 4}, "input_size": 16}
    for name in ("my_model", "mlph_my_body_my_tree"):
        model = c2f_zoo.create_model(name, **options)  # type: ignore[arg-type]
        assert {level: z.shape[1] for level, z in model(torch.rand(1, 3, 16, 16)).items()} == {"kind": 2, "shape": 3}
        assert type(model.head).__name__ == "Head"


SCORING = """
import torch
from c2f_zoo.metrics import FullPathAccuracy

def first_path(log_probs, hierarchy):
    return hierarchy.ancestors(torch.zeros(len(log_probs[hierarchy.finest]), dtype=torch.long))

class ErrorRate(FullPathAccuracy):
    higher_is_better = False
    def compute(self):
        return 1 - super().compute()
"""


def test_the_report_has_the_working_decodings_and_metrics_of_plugins(install: Install) -> None:
    points = "[c2f_zoo.decodings]\nfirst = fine_code:first_path\n[c2f_zoo.metrics]\nerror_rate = fine_code:ErrorRate\n"
    install("fine", points, SCORING)
    install("bad", "[c2f_zoo.decodings]\nworst = bad_code:x\n[c2f_zoo.metrics]\nnothing = bad_code:x\n", "x = torch")
    tree = c2f_zoo.Hierarchy.from_rows(("kind", "shape"), [("round", "disc"), ("edged", "box")])
    with pytest.warns(RuntimeWarning, match="cannot load the .* plug-in '(worst|nothing)' .*: NameError"):
        metrics = TreeMetrics(tree)
        metrics.update({"shape": torch.zeros(4, 2)}, torch.tensor([[0, 0], [0, 0], [0, 0], [1, 1]]))
    assert metrics.report("first")["error_rate"] == 0.25
    with pytest.warns(RuntimeWarning), pytest.raises(PluginError):
        TreeMetrics(tree, ["worst"]).update({"shape": torch.zeros(1, 2)}, torch.tensor([[0, 0]]))


BROKEN = {
    "ends the program": ("bad_code:std", "raise SystemExit('no licence')", "SystemExit: no licence"),
    "does not import": ("bad_code:std", "raise RuntimeError('no such driver')", "RuntimeError: no such driver"),
    "has no such module": ("no_such_module:std", "", "ModuleNotFoundError: No module named 'no_such_module'"),
    "names nothing": ("bad_code:nothing", "", "has no attribute 'nothing'"),
    "is not a function": ("bad_code:std", "std = 3", "it refers to 3, which is not a pooling"),
    "is a module": ("bad_code", "", "which is not a pooling"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_warns_and_the_others_work(fault: str, install: Install) -> None:
    value, code, message = BROKEN[fault]
    install("bad", f"[c2f_zoo.poolings]\nstd = {value}\n", code)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # listing imports nothing, so there is no warning
        assert {"mlp", "avg"} < set(c2f_zoo.list_poolings())
    named = rf"cannot load the pooling plug-in 'std' \({value}\) of bad 1.2: .*{message}"
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=named), pytest.raises(PluginError, match=named):
            c2f_zoo.create_pooling("std", [8])
    assert c2f_zoo.create_pooling("avg", [8])([torch.ones(1, 8, 2, 2)]).shape == (1, 8)


def test_a_model_plugin_must_be_a_model_spec(install: Install) -> None:
    install("bad", "[c2f_zoo.models]\nmlph_mine = bad_code:make\n", "def make(): ...")
    with pytest.warns(RuntimeWarning), pytest.raises(PluginError, match=r"'mlph_mine'.* which is not a model"):
        c2f_zoo.create_model("mlph_mine")


def test_a_hierarchy_plugin_must_return_a_hierarchy(install: Install) -> None:
    install("bad", "[c2f_zoo.hierarchies]\nmine = bad_code:tree\n", "def tree(): return {'bird': 1}")
    with pytest.raises(ValueError, match=r"hierarchy 'mine' returns \{'bird': 1\}, which is not a Hierarchy"):
        c2f_zoo.load_hierarchy("mine")


@pytest.mark.parametrize(
    ("kind", "name", "owner"),
    [
        ("poolings", "mlp", r"pooling 'mlp' is registered already \(<class 'c2f_zoo.pooling.mlp.MlpPooling'>"),
        ("backbones", "resnet50", "the name is reserved for a built-in backbone"),
        ("models", "mlph_vgg16_cub", r"model 'mlph_vgg16_cub' is registered already \(ModelSpec\("),
    ],
)
def test_a_built_in_name_takes_precedence(kind: str, name: str, owner: str, install: Install) -> None:
    install("bold", f"[c2f_zoo.{kind}]\n{name} = bold_code:new\n", NEW[kind])
    singular = REGISTRIES[kind].kind  # type: ignore[attr-defined]
    with pytest.warns(RuntimeWarning, match=rf"{singular} plug-in '{name}' \(bold_code:new\) of bold 1.2 .*: {owner}"):
        assert name in getattr(c2f_zoo, f"list_{kind}")(name)
    assert "bold_code" not in sys.modules
    if kind == "backbones":
        assert type(c2f_zoo.backbones.create_body(name)).__name__ == "ResNet"
    else:
        REGISTRIES[kind][name]  # type: ignore[index]
    assert "bold_code" not in sys.modules


def test_the_first_of_two_plugins_wins(install: Install) -> None:
    install("second", "[c2f_zoo.poolings]\nstd = second_code:new\n", NEW["poolings"])
    install("first", "[c2f_zoo.poolings]\nstd = first_code:new\n", NEW["poolings"])
    message = r"of second 1.2 is ignored: .*\(first_code:new\) of first 1.2 has the same name"
    with pytest.warns(RuntimeWarning, match=message):
        assert c2f_zoo.list_poolings("std") == ["std"]
    POOLINGS["std"]
    assert "second_code" not in sys.modules


def test_an_unreadable_list_of_entry_points_does_not_hide_others(install: Install) -> None:
    install("fine", "[c2f_zoo.poolings]\nstd = fine_code:new\n", NEW["poolings"])
    install("bad", "[c2f_zoo.poolings]\nthis is no entry point\n", "")
    with pytest.warns(RuntimeWarning, match="cannot read the entry points of bad"):
        assert {"mlp", "std"} < set(c2f_zoo.list_poolings())
    assert callable(POOLINGS["std"])


def test_installed_packages_are_read_once_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[str] = []
    monkeypatch.setattr("c2f_zoo.registry.entry_points", lambda group: groups.append(group) or [])
    registry = Registry[int]("number", "numbers")
    registry.register("one")(1)
    assert registry["one"] == 1
    assert "one" in registry
    assert groups == []
    with pytest.raises(ValueError, match="unknown number 'two'"):
        registry["two"]
    assert registry.names() == ["one"]
    assert groups == ["numbers"]


def test_subscribers_receive_existing_and_new_names() -> None:
    registry = Registry[int]("number")
    registry.register("one")(1)
    names: list[str] = []
    registry.subscribe(names.append)
    registry.register("two")(2)
    assert names == ["one", "two"]


def test_the_table_of_poolings_has_a_row_for_a_broken_plugin(install: Install) -> None:
    from typer.testing import CliRunner

    from c2f_zoo.cli import app

    install("bad", "[c2f_zoo.poolings]\navx = bad_code:std\n", "")
    with pytest.warns(RuntimeWarning, match="'avx'"):
        shown = CliRunner().invoke(app, ["list", "poolings", "av*"])
    assert shown.exit_code == 0
    rows = {line.split()[1]: line for line in shown.output.splitlines() if line.startswith("│ av")}
    assert "cannot be shown" in rows["avx"]
    assert "512" in rows["avg"]


def test_info_has_a_row_for_broken_weights(install: Install) -> None:
    from typer.testing import CliRunner

    from c2f_zoo.cli import app

    install("bad", "[c2f_zoo.weights]\nmlph_tiny_critters.mine = bad_code:weights\n", "raise RuntimeError('no disk')")
    with pytest.warns(RuntimeWarning, match="'mlph_tiny_critters.mine'"):
        shown = CliRunner().invoke(app, ["info", "mlph_tiny_critters"], env={"COLUMNS": "300"})
    assert shown.exit_code == 0
    (row,) = [line for line in shown.output.splitlines() if "weights .mine" in line]
    assert "cannot load the pretrained weights plug-in" in row
    assert "RuntimeError: no disk" in row
    assert "weights .scratch" in shown.output


USE = """
import sys, warnings
import c2f_zoo, torch

assert "std" in c2f_zoo.list_poolings() and "shapes" in c2f_zoo.list_hierarchies()
assert "c2f_zoo_example" not in sys.modules
options = {"backbone": "test_convnext", "hierarchy": "shapes", "input_size": 64, "pooling": "std"}
model = c2f_zoo.create_model("mlph", **options, pooling_options={"eps": 1e-3})
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
x, shape = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
losses = []
for _ in range(2):
    loss = torch.nn.functional.cross_entropy(model(x)["shape"], shape)
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert losses[1] < losses[0], losses
model.save_pretrained("saved")
again = c2f_zoo.create_model("local-dir:saved")
assert again.pooling.eps == 1e-3 and type(again.pooling).__module__ == "c2f_zoo_example"
assert all(torch.equal(a, b) for a, b in zip(model.eval()(x).values(), again.eval()(x).values()))
with warnings.catch_warnings(record=True) as seen:
    try:
        c2f_zoo.create_model("mlph", **{**options, "pooling": "cracked"})
    except ValueError as error:
        print(error)
assert "cracked" in str(seen[0].message)
"""


@pytest.mark.slow
def test_the_example_is_built_installed_and_used(tmp_path: Path) -> None:
    source = shutil.copytree(EXAMPLE, tmp_path / "source")  # a build writes files into its folder
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--quiet"]
    _run([*pip, "wheel", "--no-build-isolation", *offline, "--wheel-dir", tmp_path, source])
    python, site = _environment(tmp_path / "venv")
    (wheel,) = tmp_path.glob("*.whl")
    _run([*pip, "--python", python, "install", "--no-compile", *offline, wheel])
    _break_a_copy(site)
    page = (ROOT / "docs" / "how-to" / "write-a-plugin.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```\w+\n(.*?)```", page, re.DOTALL) if "--8<--" not in block]
    output = _run([python, "-c", "\n".join([USE, *blocks])], cwd=tmp_path)
    assert "{'kind': (2, 2), 'shape': (2, 3)}" in output
    assert "cannot load the pooling plug-in 'cracked' (c2f_zoo_broken:StdPooling) of c2f-zoo-broken 0.1" in output
    assert "No module named 'torhc'" in output


def _environment(folder: Path) -> tuple[Path, Path]:
    """Create a virtual environment; return its python and site-packages."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    outer = next(path for path in sys.path if Path(path, "torch").is_dir())
    (site / "outer.pth").write_text(f"{ROOT}\nimport site; site.addsitedir({outer!r})\n")
    return folder / "bin" / "python", site


def _break_a_copy(site: Path) -> None:
    """Install the example again, under other names and with a typo in its code."""
    code = (site / "c2f_zoo_example.py").read_text().replace("import torch\n", "import torhc\n")
    (site / "c2f_zoo_broken.py").write_text(code)
    info = shutil.copytree(site / "c2f_zoo_example-0.1.dist-info", site / "c2f_zoo_broken-0.1.dist-info")
    for file in (info / "METADATA", info / "entry_points.txt"):
        text = file.read_text().replace("example", "broken").replace("std =", "cracked =")
        file.write_text(text.replace("shapes =", "pieces ="))


def _run(command: list[object], cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
