"""What training on many GPUs takes, on paper: bytes, cores, hours and money from measured and assumed constants.

Every figure is a formula over :class:`Constants`; each constant says whether it was measured, counted or assumed.
docs/SCALING.md explains the formulas and shows the table.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

#: Bits of the loss that the selection's three passes fix (trainer/selection.py); a pass adds up one int64 a value.
SELECTION_BITS = (11, 10, 10)
#: Numbers that a step adds up over the ranks beside the selection (trainer/step.py): float64.
STEP_NUMBERS = 3 + 5
#: Collectives outside the backward pass: two of numbers, three of the selection.
STEP_COLLECTIVES = 5


@dataclass(frozen=True)
class Constants:
    """Constants of a run on OpenImages V3 with ResNet-101 and 5 000 classes at 448 × 448."""

    # Counted.
    parameters: int = 52_745_160
    """Of ResNet-101's features and the 1 × 1 convolution to 5 000 classes; counted from the model by a test."""
    gradient_bytes_a_parameter: int = 4
    """float32, autocast or not."""
    state_bytes_a_parameter: int = 12
    """In a checkpoint: weights and Adam's two moments, float32."""
    # Measured on this project's development machine (2 cores, 2026).
    decode_ms: float = 3.5
    """Processor time of the loader an image of 1 024 × 768: 3.15 of decoding and resizing, and the loader's 13 %."""
    decode_ms_at_size: float = 1.2
    """The same for shards built at training size (--image squash:448); the machine was busy."""
    # Assumed.
    images: int = 3_400_000
    """Training images with verified labels."""
    image_bytes: int = 300_000
    """Of an original."""
    image_bytes_at_size: int = 60_000
    """Of an image built at training size."""
    gpu_images_per_second: float = 500.0
    """Forward and backward of a GPU of the H100 class, bfloat16, batch 64, alone. Not measured by this project."""
    backward_share: float = 2 / 3
    """Of the step's computing: what the gradient all-reduce can hide behind."""
    batch_a_gpu: int = 64
    gpus_a_node: int = 8
    cores_a_gpu: int = 12
    """Processor cores that such nodes have for each GPU."""
    network_bytes_per_second: float = 12.5e9
    """Between nodes, a node, usable by one ring: 100 Gbit/s."""
    intra_bytes_per_second: float = 150e9
    """Between the GPUs of a node, usable by one ring."""
    latency_seconds: float = 15e-6
    """Of one message between two nodes, software included."""
    bucket_bytes: int = 25_000_000
    """DDP's gradient bucket: the last one cannot hide."""
    checkpoint_every_steps: int = 1000
    checkpoint_stall_seconds: float = 0.5
    """Copy of the state to host memory."""
    price_a_gpu_hour: float = 4.0
    """US dollars."""


@dataclass(frozen=True)
class Estimate:
    """What one number of GPUs takes. Seconds are of one step, bytes and rates as their names say."""

    gpus: int
    nodes: int
    global_batch: int
    compute_seconds: float
    allreduce_bytes_a_gpu: float
    allreduce_seconds: float
    exposed_seconds: float
    selection_bytes_a_gpu: float
    collectives_seconds: float
    efficiency: float
    images_per_second: float
    loader_cores_a_gpu: float
    loader_cores_a_gpu_at_size: float
    shard_bytes_per_second_a_node: float
    shard_bytes_per_second_a_node_at_size: float
    checkpoint_bytes: int
    checkpoint_bytes_per_second: float
    steps_an_epoch: int
    hours_an_epoch: float
    cost_an_epoch: float


def ring_bytes(payload: float, ranks: int) -> float:
    """Return the bytes that each rank sends in a ring all-reduce of ``payload`` bytes: 2 (n − 1) / n of it."""
    return 2 * (ranks - 1) / ranks * payload


def selection_payload() -> int:
    """Return the bytes that the selection and the step's sums add up over the ranks, whatever the batch."""
    return 8 * sum(1 << bits for bits in SELECTION_BITS) + 8 * STEP_NUMBERS


def allreduce_seconds(payload: float, gpus: int, constants: Constants) -> float:
    """Return the time of rings over all GPUs, ordered by node, one a bucket: the slowest link decides, the network
    from two nodes on. A bucket's 2 (nodes − 1) messages between nodes come in turn, each with its latency."""
    if gpus == 1:
        return 0.0
    nodes = -(-gpus // constants.gpus_a_node)
    rate = constants.network_bytes_per_second if nodes > 1 else constants.intra_bytes_per_second
    messages = math.ceil(payload / constants.bucket_bytes) * 2 * (nodes - 1)
    return ring_bytes(payload, gpus) / rate + messages * constants.latency_seconds


def exposed_seconds(gpus: int, compute: float, constants: Constants) -> float:
    """Return what the backward pass does not hide of the gradient all-reduce: the excess over its length, at least
    the last bucket, whose gradients are ready only at its end."""
    payload = constants.parameters * constants.gradient_bytes_a_parameter
    whole = allreduce_seconds(payload, gpus, constants)
    last = allreduce_seconds(min(payload, constants.bucket_bytes), gpus, constants)
    return max(whole - constants.backward_share * compute, last)


def collectives_seconds(gpus: int, constants: Constants) -> float:
    """Return the time of the five small collectives of a step: latency, up and down a tree of the nodes."""
    nodes = -(-gpus // constants.gpus_a_node)
    if gpus == 1:
        return 0.0
    depth = max(1, math.ceil(math.log2(nodes))) if nodes > 1 else 1
    return STEP_COLLECTIVES * 2 * depth * constants.latency_seconds


def estimate(gpus: int, constants: Constants) -> Estimate:
    """Work out everything for ``gpus`` GPUs, with the same batch a GPU however many there are."""
    c = constants
    compute = c.batch_a_gpu / c.gpu_images_per_second
    exposed, collectives = exposed_seconds(gpus, compute, c), collectives_seconds(gpus, c)
    stall = c.checkpoint_stall_seconds / c.checkpoint_every_steps
    step = compute + exposed + collectives + stall
    rate = gpus * c.batch_a_gpu / step
    node_rate = rate * min(gpus, c.gpus_a_node) / gpus
    state = c.parameters * c.state_bytes_a_parameter
    hours = c.images / rate / 3600
    return Estimate(
        gpus=gpus,
        nodes=-(-gpus // c.gpus_a_node),
        global_batch=gpus * c.batch_a_gpu,
        compute_seconds=compute,
        allreduce_bytes_a_gpu=ring_bytes(c.parameters * c.gradient_bytes_a_parameter, gpus),
        allreduce_seconds=allreduce_seconds(c.parameters * c.gradient_bytes_a_parameter, gpus, c),
        exposed_seconds=exposed,
        selection_bytes_a_gpu=ring_bytes(selection_payload(), gpus),
        collectives_seconds=collectives,
        efficiency=compute / step,
        images_per_second=rate,
        loader_cores_a_gpu=rate / gpus * c.decode_ms / 1000,
        loader_cores_a_gpu_at_size=rate / gpus * c.decode_ms_at_size / 1000,
        shard_bytes_per_second_a_node=node_rate * c.image_bytes,
        shard_bytes_per_second_a_node_at_size=node_rate * c.image_bytes_at_size,
        checkpoint_bytes=state,
        checkpoint_bytes_per_second=state / (c.checkpoint_every_steps * step),
        steps_an_epoch=-(-c.images // (gpus * c.batch_a_gpu)),
        hours_an_epoch=hours,
        cost_an_epoch=hours * gpus * c.price_a_gpu_hour,
    )


#: Rows of the table: title, field, how a value is shown.
ROWS = (
    ("nodes", "nodes", "{:,.0f}"),
    ("global batch, images", "global_batch", "{:,.0f}"),
    ("steps an epoch", "steps_an_epoch", "{:,.0f}"),
    ("computing a step, ms", "compute_seconds", "ms"),
    ("gradient all-reduce, MB sent a GPU and step", "allreduce_bytes_a_gpu", "MB"),
    ("gradient all-reduce, ms", "allreduce_seconds", "ms"),
    ("of it not hidden, ms", "exposed_seconds", "ms"),
    ("selection and counts, kB sent a GPU and step", "selection_bytes_a_gpu", "kB"),
    ("selection and counts, ms", "collectives_seconds", "ms"),
    ("efficiency", "efficiency", "{:.1%}"),
    ("images/s", "images_per_second", "{:,.0f}"),
    ("loader cores a GPU, original images", "loader_cores_a_gpu", "{:.2f}"),
    ("loader cores a GPU, shards at training size", "loader_cores_a_gpu_at_size", "{:.2f}"),
    ("shards read a node, MB/s, original images", "shard_bytes_per_second_a_node", "MB"),
    ("shards read a node, MB/s, at training size", "shard_bytes_per_second_a_node_at_size", "MB"),
    ("checkpoint, MB", "checkpoint_bytes", "MB"),
    ("checkpoints, MB/s on average", "checkpoint_bytes_per_second", "MB"),
    ("hours an epoch", "hours_an_epoch", "{:.4f}"),
    ("cost an epoch, $", "cost_an_epoch", "{:,.0f}"),
)
_UNITS = {"ms": 1e3, "MB": 1e-6, "kB": 1e-3}


def table(gpus: tuple[int, ...] = (8, 64, 512), constants: Constants | None = None) -> list[list[str]]:
    """Return the table as rows of text: a title and one value for each number of GPUs; the first row is the head."""
    estimates = [asdict(estimate(count, constants or Constants())) for count in gpus]
    rows = [["GPUs", *(f"{count:,}" for count in gpus)]]
    for title, key, form in ROWS:
        scale = _UNITS.get(form)
        rows.append([title, *(f"{e[key] * scale:,.2f}" if scale else form.format(e[key]) for e in estimates)])
    return rows
