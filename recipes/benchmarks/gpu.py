"""Check and measure a GPU in less than ten minutes.

    bash recipes/benchmarks/gpu.sh OUT                    # writes OUT/gpu.json and OUT/gpu.log
    bash recipes/benchmarks/gpu.sh OUT --tiny             # small sizes, also without a GPU
    bash recipes/benchmarks/gpu.sh OUT --only poolings    # some of the sections

Each section runs in a new process with a time limit; `SECTIONS` lists them. A row is written to the JSON file as soon
as it is measured. A section that fails is recorded, and the next one runs. Nothing is installed or downloaded, and
missing packages are named: sections that need them are recorded as failed.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from c2f_zoo.evaluation.gpu_targets import summarize
from c2f_zoo.evaluation.sections import PytestRows, Record, add_rows, run_sections

ROOT = Path(__file__).parents[2]
NEEDED = ("torch", "torchvision", "timm", "accelerate", "torchmetrics", "jsonargparse")
OPTIONAL = ("triton", "pytest")
SECONDS = 470.0  # of all sections
SLOW_ON_A_CPU = ("float16", "autocast", "compiled")


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        out: the folder of the results.
        tiny: use small sizes.
        data: folder of CUB-200-2011, or of a part of it in the same layout; None: drawn images.
    """

    out: Path
    tiny: bool
    data: str | None

    @property
    def record(self) -> Record:
        return Record(self.out / "gpu.json")


def device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(settings: Settings) -> None:
    """Measure the rate of matrix products, and name the device and versions."""
    import torch

    from c2f_zoo.evaluation.device_measuring import PRECISIONS, product_rate

    for precision in PRECISIONS:
        rate = product_rate(precision, device(), size=256 if settings.tiny else 8192)
        settings.record.add("machine", {"precision": precision, "tflops": round(rate, 3)})
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if device().type == "cuda" else None
    settings.record.update("machine", cuda=torch.version.cuda, memory_gib=memory, tiny=settings.tiny)
    from c2f_zoo.evaluation.provenance import describe_machine  # needs all packages
    from c2f_zoo.training.launch import usable_cores

    settings.record.update("machine", cores=usable_cores(), **describe_machine(device()))


def checks(settings: Settings) -> None:
    """Compare every pooling and a model with float64; see `c2f_zoo.evaluation.device_checks`."""
    from c2f_zoo.evaluation.device_checks import check_pooling_case, pooling_cases
    from c2f_zoo.evaluation.device_model_checks import check_model_in, model_modes
    from c2f_zoo.pooling import list_poolings

    names = ["mlp", "max"] if settings.tiny else ["mlp", *(name for name in list_poolings() if name != "mlp")]
    calls: dict[str, Callable[[], dict[str, Any]]] = {}
    calls |= {str(case): partial(check_pooling_case, case, device()) for case in pooling_cases(names)}
    calls |= {f"model {mode}": partial(check_model_in, mode, device()) for mode in model_modes(device())}
    calls = dict(sorted(calls.items(), key=lambda item: item[0].endswith("compiled")))  # the slowest come last
    if settings.tiny:  # without what takes seconds on a CPU
        calls = {name: call for name, call in calls.items() if "max" in name or name.split()[-1] not in SLOW_ON_A_CPU}
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")  # of each worker
    add_rows(settings.record, "checks", calls, workers=0 if settings.tiny else 6)


def tests(settings: Settings) -> None:
    """Run the other tests marked `gpu`, if pytest is installed."""
    import pytest

    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    chosen = [str(path) for path in files if path.name != "test_device_checks.py"]  # which the section "checks" ran
    if settings.tiny:
        chosen = [f"{ROOT}/tests/test_device_checks.py"]
    # Without the configured options, which need pytest-xdist.
    options = ["-m", "gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    if not settings.tiny and find_spec("xdist"):
        options += ["-n", "6"]  # kernels compile in parallel
    status = pytest.main([*options, *chosen], plugins=[PytestRows(settings.record, "tests")])
    settings.record.update("tests", pytest=status.name if isinstance(status, pytest.ExitCode) else status)


def poolings(settings: Settings) -> None:
    """Measure forward and backward passes of poolings at the paper's shape, the most important first."""
    from c2f_zoo.evaluation.device_steps import measure_pooling

    batches = (2,) if settings.tiny else (32, 8, 64, 16)
    shape = {"channels": 16, "size": 5, "dim": 32} if settings.tiny else {}
    middle, precisions = batches[0], ("bf16",) if settings.tiny else ("bf16", "tf32", "fp32")
    cases = list(itertools.product(["mlp"], ("eager", "ours"), precisions, batches))
    cases += [] if settings.tiny else [("mlp", "compiled", "bf16", middle)]
    cases += itertools.product(["mlp"], ("tiled", "triton"), precisions, [middle])
    cases += itertools.product(["hbp"], ("eager", "ours", "triton"), precisions, [middle])
    if not settings.tiny:
        cases += [("mlp", "compiled", "tf32", middle), ("hbp", "compiled", "bf16", middle)]
        cases += [("mlp", "compiled", "bf16", batch) for batch in batches[1:]]
    for pooling, variant, precision, batch in cases:
        about = {"pooling": pooling, "variant": variant, "precision": precision, "batch": batch}
        with settings.record.record_errors("poolings", about):
            plain = plain_transcriptions()[pooling]
            row = measure_pooling(pooling, variant, precision, batch, plain, device(), **shape)
            settings.record.add("poolings", {**about, **row, **of_gemm(row, settings, precision)})
        free_memory()


def step(settings: Settings) -> None:
    """Measure training steps of mlph_vgg16_cub on images of 448 x 448, with bf16 autocast."""
    import torch

    from c2f_zoo.evaluation.device_steps import measure_training_step

    options: dict[str, Any] = {}
    if settings.tiny:
        options = {"model": "mlph_tiny_critters", "input_size": 32, "pooling_options": {"dim": 16}}
    batches = (2,) if settings.tiny else (32, 8, 64, 16)
    cases = [(variant, batch) for batch in batches for variant in ("eager", "ours")]
    if not settings.tiny:
        cases += [("ours, cudnn.benchmark", 32), ("ours, compiled", 32), ("eager, compiled", 32)]
    for variant, batch in cases:
        torch.backends.cudnn.benchmark = "benchmark" in variant
        about = {"variant": variant, "batch": batch}
        with settings.record.record_errors("step", about):
            plain = plain_transcriptions()["mlp"] if variant.startswith("eager") else None
            row = measure_training_step(batch, plain, device(), compiled="compiled" in variant, **options)
            settings.record.add("step", {**about, **row, **of_gemm(row, settings, "bf16")})
        free_memory()


def loader(settings: Settings) -> None:
    """Measure whether the loader keeps the device busy, with one worker and with one for each core."""
    from c2f_zoo import create_dataset
    from c2f_zoo.evaluation.feeding import create_run, draw_dataset, measure_loader, measure_training
    from c2f_zoo.training.launch import usable_cores
    from c2f_zoo.training.options import Stage, TrainOptions

    seconds, size, batch, cores = (0.2, 32, 4, 1) if settings.tiny else (6.0, 448, 32, usable_cores())
    options = TrainOptions(
        dataset="cub",
        model="mlph_tiny_critters" if settings.tiny else "mlph_vgg16_cub",
        model_options={"input_size": size},
        resolutions={"species": None, "genus": size // 2, "family": size // 4},
        stages=[Stage(epochs=1, lr=1e-4, backbone_lr=1e-4)],
        batch_size=batch,
        mixed_precision="bf16",
    )
    with tempfile.TemporaryDirectory() as folder:
        photo = ((50, 40), 8) if settings.tiny else ((500, 375), 256)
        dataset = (
            create_dataset("cub", "train", root=settings.data) if settings.data else draw_dataset(Path(folder), *photo)
        )
        for workers in sorted({1, cores}):
            with settings.record.record_errors("loader", {"workers": workers}):
                run = create_run(replace(options, num_workers=workers), dataset, Path(folder))
                settings.record.add("loader", measure_loader(run, seconds))
        with settings.record.record_errors("loader", {"workers": cores}):
            run = create_run(replace(options, num_workers=cores), dataset, Path(folder))
            settings.record.add("loader", measure_training(run, seconds))


def resume(settings: Settings) -> None:
    """Stop and resume short runs of recipes/train.py, and compare them with runs that were not stopped."""
    from c2f_zoo.evaluation.recipe_runs import check_resume, try_command

    epochs, step = (1, 4) if settings.tiny else (3, 20)
    stages = f"[{{epochs: {epochs}, lr: 0.5}}, {{epochs: {epochs}, lr: 0.5, backbone_lr: 0.01}}]"
    recipe = [f"{ROOT}/recipes/train.py", "--config", f"{ROOT}/recipes/configs/smoke.yaml"]
    command = [sys.executable, *recipe, "--stages", stages, "--save_every", "2 steps"]
    with tempfile.TemporaryDirectory() as temporary:
        for precision in ("bf16", "fp16") if device().type == "cuda" else ("bf16",):
            (folder := Path(temporary, precision)).mkdir()
            with settings.record.record_errors("resume", {"precision": precision}):
                row = check_resume([*command, "--mixed_precision", precision], folder, step)
                settings.record.add("resume", {"precision": precision, **row})
        if device().type == "cuda":
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
            options = ["--num_processes", "1", *recipe, "--channels_last", "false", "--output", f"{temporary}/fsdp"]
            settings.record.add("resume", {"run": "FSDP of one", **try_command([*launch, *options])})


def plain_transcriptions() -> dict[str, Callable[..., Any]]:
    """Return each pooling as most code writes it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from reference.poolings import PLAIN

    return PLAIN


def of_gemm(row: dict[str, Any], settings: Settings, precision: str) -> dict[str, float | None]:
    """Return the fraction of the measured rate of matrix products, None if that is unknown."""
    rates = {row["precision"]: row["tflops"] for row in settings.record.rows("machine")}
    return {"of_gemm": round(row["tflops"] / rates[precision], 4) if precision in rates else None}


def free_memory() -> None:
    import torch

    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Section -> its time limit in seconds, and its function.
SECTIONS: dict[str, tuple[float, Callable[[Settings], None]]] = {
    "machine": (30, machine),
    "checks": (110, checks),
    "tests": (60, tests),
    "poolings": (80, poolings),
    "step": (60, step),
    "loader": (50, loader),
    "resume": (80, resume),
}


def run_section(settings: Settings, section: str) -> None:
    if not settings.tiny and device().type != "cuda":
        raise RuntimeError("no GPU was found; --tiny runs small sizes without one")
    SECTIONS[section][1](settings)


def start_method(settings: Settings) -> str:
    """Choose how sections start: small ones without a GPU fork, after imports that take longer than themselves."""
    if settings.tiny and not {"torch", "timm", "accelerate"}.intersection(missing_packages()):
        import torch

        import c2f_zoo.evaluation.device_model_checks
        import c2f_zoo.evaluation.device_steps  # noqa: F401

        if not torch.cuda.is_available():
            return "fork"
    return "spawn"


def missing_packages() -> list[str]:
    return [name for name in (*NEEDED, *OPTIONAL) if find_spec(name) is None]


def main(arguments: list[str]) -> None:
    """Run the sections, and print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder of gpu.json")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a trial without a GPU")
    parser.add_argument("--data", help="folder of CUB-200-2011 for the loader; default: $C2F_ZOO_CUB, or drawn images")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    args = parser.parse_args(arguments)
    settings = Settings(args.out, args.tiny, args.data or os.environ.get("C2F_ZOO_CUB"))
    record = settings.record
    args.out.mkdir(parents=True, exist_ok=True)
    record.path.unlink(missing_ok=True)
    record.update("packages", missing=(missing := missing_packages()))
    print(f"missing packages: {', '.join(missing) or 'none'}; what needs them is recorded as failed", flush=True)
    patience = 4 if args.tiny else 1  # on a CPU
    limits = {name: patience * limit for name, (limit, _) in SECTIONS.items() if name in args.only}
    run_sections(partial(run_section, settings), limits, record, patience * SECONDS, start_method(settings))
    lines = summarize(record)
    record.update("summary", lines=lines)
    print("\n".join(["", *lines, f"written to {record.path}"]))


if __name__ == "__main__":
    main(sys.argv[1:])
