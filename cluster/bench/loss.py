"""Large-loss selection, the BoostLU head and LL-Cp's corrections table, each beside what it replaces.

The figures of a machine say little; the ratios to a peer measured in the same run are what to compare.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.corrections import Corrections
from trainer.losses import LossConfig, Progress, build_loss
from trainer.losses.binary import assume_negative
from trainer.model.boostlu import BoostLUHead
from trainer.selection import select_large


@dataclass(frozen=True)
class Size:
    """What to measure at; the defaults are OpenImages'."""

    batch: int = 256
    classes: int = 5_000
    head_batch: int = 128
    channels: int = 2_048
    side: int = 14
    samples: int = 3_600_000
    correcting_epochs: int = 9
    step_images: int = 4
    """Images of the training step that the selection is compared with; its time is scaled up to ``batch``."""
    backbone: str = "resnet101"
    image_size: int = 448


def measure(size: Size, device: str = "cpu", repeats: int = 5) -> dict[str, Any]:
    """Return all figures: seconds, bytes and ratios by name."""
    place = torch.device(device)
    return {
        "size": asdict(size),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "selection": selection(size, place, repeats),
        "head": head(size, place, repeats),
        "corrections": corrections(size, repeats),
    }


def selection(size: Size, device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds of one selection for several k, of torch.topk for the same, and of the rest of the training step."""
    torch.manual_seed(0)
    logits = torch.randn(size.batch, size.classes, device=device) - 3
    labels = torch.zeros(size.batch, size.classes, dtype=torch.int8, device=device)
    losses, eligible = assume_negative(logits, labels), labels == 0
    rows = []
    for percent in (0.1, 0.5, 4.5):
        k = int(losses.numel() * percent / 100)
        own = best(partial(select_large, losses, eligible, k), device, repeats)
        peer = best(partial(losses.flatten().topk, k), device, repeats)
        rows.append({"percent": percent, "k": k, "seconds": own, "topk_seconds": peer, "ratio": own / peer})
    loss = build_loss(LossConfig(name="ll-r"), size.classes)
    real = torch.ones(size.batch, dtype=torch.bool, device=device)
    whole = best(lambda: loss(logits, labels, Progress(10, 10), size.batch, real), device, repeats)
    step = training_step_seconds(size, device)
    return {"by_k": rows, "loss_seconds": whole, "step_seconds": step, "share_of_step": rows[-1]["seconds"] / step}


def training_step_seconds(size: Size, device: torch.device) -> float:
    """Forward and backward of backbone and head, measured on ``step_images`` images and scaled to ``batch``."""
    from trainer.model.classifier import ModelConfig, build_model

    model = build_model(ModelConfig(backbone=size.backbone, weights="none"), size.classes, seed=0).to(device)
    images = torch.randn(size.step_images, 3, size.image_size, size.image_size, device=device)
    images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(images)
        logits.sum().backward()

    return best(step, device, repeats=2) * size.batch / size.step_images


class StockHead(nn.Module):
    """The head as it is usually written: convolution, maximum, mean, with the whole CAM kept for backward."""

    def __init__(self, head: BoostLUHead) -> None:
        super().__init__()
        self.alpha, self.weight, self.bias = head.alpha, head.weight, head.bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        cam = nn.functional.conv2d(features, self.weight[:, :, None, None], self.bias)
        return torch.maximum(cam, self.alpha * cam).mean((2, 3))


def head(size: Size, device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds and peak extra memory of the head's forward and backward, ours and the stock modules'."""
    torch.manual_seed(0)
    ours = BoostLUHead(size.channels, size.classes, alpha=5.0).to(device)
    shape = (size.head_batch, size.channels, size.side, size.side)
    features = torch.randn(shape, device=device).to(memory_format=torch.channels_last).requires_grad_()
    cam_bytes = size.head_batch * size.classes * size.side**2 * (2 if device.type == "cuda" else 4)
    result: dict[str, Any] = {"cam_bytes": cam_bytes}
    for name, module in (("ours", ours), ("stock", StockHead(ours))):

        def step(module: nn.Module = module) -> None:
            features.grad = None
            module.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = module(features)
            logits.sum().backward()

        step()
        peak = peak_bytes(step, device)
        result[name] = {
            "seconds": best(step, device, max(1, repeats // 2)),
            "peak_bytes": peak,
            "peak_over_cam": peak / cam_bytes,
        }
    result["seconds_ratio"] = result["ours"]["seconds"] / result["stock"]["seconds"]
    result["peak_ratio"] = result["ours"]["peak_bytes"] / max(1, result["stock"]["peak_bytes"])
    return result


def corrections(size: Size, repeats: int) -> dict[str, Any]:
    """Bytes of a table with 0.1 % of all entries an epoch, and seconds to look a batch up."""
    rng = np.random.default_rng(0)
    table = Corrections(size.samples, size.classes)
    each = size.samples * size.classes // 1000
    merge_seconds = []
    for epoch in range(size.correcting_epochs):
        keys = np.arange(each) * 1000 + epoch * (1000 // size.correcting_epochs) + rng.integers(0, 50, each)
        samples, classes = np.divmod(keys[rng.permutation(each)], size.classes)
        table.add(torch.from_numpy(samples), torch.from_numpy(classes), epoch + 2, torch.rand(each))
        started = time.perf_counter()
        table.merge()
        merge_seconds.append(time.perf_counter() - started)
    labels = torch.zeros(size.batch, size.classes, dtype=torch.int8)
    batch = torch.from_numpy(rng.integers(0, size.samples, size.batch))
    return {
        "corrections": len(table),
        "bytes": table.nbytes,
        "bytes_each": table.nbytes / max(1, len(table)),
        "lookup_seconds": best(lambda: table.apply(labels, batch), torch.device("cpu"), repeats),
        "merge_seconds": max(merge_seconds, default=0.0),
    }


def best(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Shortest of ``repeats`` timings after one that does not count, in seconds."""
    work()
    seconds = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Most memory that ``work`` holds beyond what was there before: the allocator's on GPU, resident on Linux."""
    gc.collect()
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
