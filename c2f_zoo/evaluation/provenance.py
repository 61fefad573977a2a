"""Provenance of measurements: date, device, versions."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from c2f_zoo.training.launch import usable_cores

PACKAGES = ("torch", "torchvision", "timm", "torchmetrics")


def describe_machine(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return the date, device and versions of a measurement as columns of a CSV row.

    Args:
        device: the device that computed the result.

    Examples:
        >>> sorted(describe_machine())
        ['date', 'device', 'python', 'timm', 'torch', 'torchmetrics', 'torchvision']
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def device_name(device: torch.device | str = "cpu") -> str:
    """Return a GPU's model, or the number of usable cores and the processor's model."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{usable_cores()} cores, {_processor()}" if device.type == "cpu" else str(device)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
