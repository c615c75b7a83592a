"""What a trained model sees in an image: class-activation maps of a run's checkpoint.

Kim et al., CVPR 2023: a class's map is the 1×1 convolution's output after BoostLU, and its spatial mean is the logit,
so the map says exactly which places gave the score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sharding.errors import UserError, did_you_mean
from sharding.index import SplitIndex, read_split
from trainer.config import RunConfig
from trainer.data.augment import Augment
from trainer.data.decode import CorruptImage, decode_rgb, squash
from trainer.data.reader import ImageReader
from trainer.evaluation import load_model
from trainer.run.checkpoint import Manifest
from trainer.run.policies import best_checkpoint
from trainer.run.registry import RunRegistry

_BATCH = 32


@dataclass(frozen=True)
class Explanation:
    """One image as a model sees it.

    image: uint8 (H, W, 3), upright, at its own size · cam: float32 (C, h, w), after BoostLU, over the whole image ·
    logits: float32 (C,), the means of the maps
    """

    image: np.ndarray
    cam: np.ndarray
    logits: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """Sigmoid of the logits, float64 (C,)."""
        return probability(self.logits)

    def top(self, count: int) -> list[int]:
        """Return the numbers of the highest-scoring classes, best first."""
        return [int(c) for c in np.argsort(-self.logits, kind="stable")[:count]]


class Explainer:
    """A run's model at one checkpoint, on the CPU in float32, with the run's own resizing and normalisation.

    ``config`` may differ from the run's in ``model.alpha`` and ``model.boost``: a model that was trained plainly can
    be boosted here, at inference only. Without ``manifest`` it is the checkpoint that is best on validation, or the
    newest when none was evaluated.
    """

    def __init__(
        self, registry: RunRegistry, config: RunConfig | None = None, manifest: Manifest | None = None
    ) -> None:
        self.config = config or registry.config()
        self.manifest = manifest or best_or_last(registry)
        self.classes = [str(c["name"]) for c in registry.description()["classes"]]
        self.model = load_model(registry, self.manifest, self.config)
        normalisation = {"mean": self.model.mean, "std": self.model.std}
        self._augment = Augment(self.config.augment.model_copy(update=normalisation), self.config.seed)

    @property
    def alpha(self) -> float:
        return self.model.head.alpha

    @property
    def side(self) -> int:
        """Side in pixels of the square that images are resized to."""
        return self.config.dataset.image_size

    def explain(self, data: bytes, origin: str = "image") -> Explanation:
        """Explain an encoded image of any size; ``origin`` names it in the error when it cannot be decoded."""
        pixels = decode_pixels(data, origin)
        cam = self.cams(pixels[None])[0]
        return Explanation(pixels.permute(1, 2, 0).numpy(), cam, cam.mean((1, 2)))

    @torch.no_grad()
    def cams(self, images: Tensor) -> np.ndarray:
        """uint8 (B, 3, H, W) of any size → boosted maps, float32 (B, C, h, w)."""
        return self.model.cam(self._prepare(images)).float().numpy()

    @torch.no_grad()
    def logits(self, images: Tensor) -> np.ndarray:
        """uint8 (B, 3, H, W) of any size → logits, float32 (B, C)."""
        return self.model(self._prepare(images)).float().numpy()

    def _prepare(self, images: Tensor) -> Tensor:
        return self._augment.normalise(squash(images, self.side))


def probability(logits: np.ndarray) -> np.ndarray:
    """Sigmoid, float64, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))


def decode_pixels(data: bytes, origin: str) -> Tensor:
    """Decode to uint8 (3, H, W); bytes that are no image are a :class:`UserError` naming ``origin``."""
    try:
        return decode_rgb(data)
    except CorruptImage as error:
        raise UserError(
            f"{origin} cannot be decoded: {error}", "give an image file, for example JPEG or PNG"
        ) from error


def sample_image(dataset: str, split: str, sample: str) -> bytes:
    """Return the encoded image of a dataset's sample by its id."""
    index = read_split(dataset, split)
    found = np.flatnonzero(np.asarray(index.sample_ids) == sample)
    if not len(found):
        raise UserError(f"split {split!r} of {dataset} has no sample {sample!r}", "ids are in its index.parquet")
    with ImageReader(index) as reader:
        return reader.read(int(found[0]))


@dataclass(frozen=True)
class ImageBatch:
    """Images of a split.

    samples: int64 (b,) · sizes: int64 (b, 2), height and width · images: side → uint8 (b, 3, side, side)
    """

    samples: np.ndarray
    sizes: np.ndarray
    images: dict[int, Tensor]


def image_batches(index: SplitIndex, samples: Sequence[int], sides: Collection[int]) -> Iterator[ImageBatch]:
    """Yield images of a split resized to each of ``sides``; those that cannot be decoded are left out."""
    with ImageReader(index) as reader:
        for start in range(0, len(samples), _BATCH):
            numbers, images = [], []
            for i in samples[start : start + _BATCH]:
                try:
                    images.append(decode_rgb(reader.read(i)))
                    numbers.append(i)
                except CorruptImage:
                    continue
            if images:
                resized = {side: torch.stack([squash(image, side) for image in images]) for side in sides}
                yield ImageBatch(np.array(numbers), np.array([image.shape[1:] for image in images]), resized)


def best_or_last(registry: RunRegistry) -> Manifest:
    """Return the checkpoint that is best on validation; the newest while none was evaluated."""
    manifests = registry.checkpoints()
    if not manifests:
        raise UserError(f"run {registry.name!r} has no checkpoint yet", "wait for the first epoch to end")
    records = registry.evaluations(registry.config().dataset.validation)
    scores = {name: record["map"] for name, record in records.items() if record.get("map") is not None}
    return best_checkpoint(manifests, scores) or manifests[-1]


def class_numbers(names: list[str], wanted: list[str]) -> list[int]:
    """Return the numbers of the classes named in ``wanted``; an unknown name is a UserError with the nearest one."""
    for name in wanted:
        if name not in names:
            raise UserError(f"the run has no class {name!r}", did_you_mean(name, names))
    return [names.index(name) for name in wanted]
