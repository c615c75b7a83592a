"""Batches of decoded images: a few threads decode straight into preallocated channels-last uint8 memory.

torchvision decodes and resizes outside the interpreter lock, so threads run in parallel and, unlike worker processes,
have nothing to copy or to pickle. The caller's thread asks for at most ``ahead`` batches in advance; nothing runs
beyond that, and leaving the loop early (break, exception, close) stops the work that is still queued.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sharding.errors import UserError
from sharding.index import SplitIndex
from sharding.schema import Strict
from trainer.data.cache import CacheConfig
from trainer.data.decode import CorruptImage, decode_rgb, squash_into
from trainer.data.prefetch import PATIENCE, Schedule
from trainer.data.reader import ImageReader
from trainer.data.transforms import ImageTransform

_LOOK_AGAIN = 1.0  # seconds


#: (sample, epoch, uint8 (1, 3, S, S) of a batch to fill)
LoadImage = Callable[[int, int, Tensor], None]


class LoaderConfig(Strict):
    """How images are fetched and decoded; none of it changes what a batch contains."""

    threads: int = Field(3, ge=0)
    """Decode threads a rank; one more than the rank's cores hides reading. 0 decodes in the caller's thread."""
    decode: Literal["cpu", "cuda"] = "cpu"
    """Where JPEGs are decoded and images resized. ``cuda`` spares the CPU and takes time from training."""
    ahead: int = Field(4, ge=1)
    """Batches in preparation at a time: bounds memory."""
    cache: CacheConfig = CacheConfig()
    """The node's local copy of remote shards."""
    max_corrupt_share: float = Field(0.01, ge=0, le=1)
    """Share of a split's images that may fail to decode before training, or an evaluation, stops; those below it are
    masked and reported."""

    def check_corrupt(self, index: SplitIndex, corrupt: Collection[str], last: Corrupt) -> None:
        """Raise :class:`UserError` when ``corrupt`` (sample ids) are more of the split than may be."""
        if len(corrupt) > self.max_corrupt_share * len(index):
            raise UserError(
                f"{len(corrupt)} of {len(index)} images of split {index.name!r} cannot be decoded, more than "
                f"loader.max_corrupt_share={self.max_corrupt_share:g}; last: {last.sample_id!r} in {last.shard} "
                f"({last.reason})",
                f"run `boostlu shards verify {index.root}`, or raise loader.max_corrupt_share",
            )


@dataclass(frozen=True)
class Request:
    """What to load: ``samples`` int64 (b,), ``real`` bool (b,); step and epoch come back with the batch."""

    step: int
    samples: np.ndarray
    real: np.ndarray
    epoch: int = 0


@dataclass(frozen=True)
class Corrupt:
    """A sample whose image cannot be decoded."""

    sample_id: str
    shard: str
    reason: str


@dataclass
class Batch:
    """One request, loaded. A corrupt image is all zeros and not real.

    images: uint8 (b, 3, H, W), channels_last, pinned where CUDA is · samples: int64 (b,) · real: bool (b,)
    """

    step: int
    images: Tensor
    samples: np.ndarray
    real: np.ndarray
    corrupt: list[Corrupt] = field(default_factory=list)
    epoch: int = 0


class Loader:
    """Loads requests in order. Use as a context manager, or call :meth:`close`; one :meth:`batches` at a time.

    ``schedule`` says which shards the requests' epochs and steps will read, so that remote ones are downloaded ahead;
    ``transform`` replaces the squash to image_size (see trainer/data/transforms.py).
    """

    def __init__(
        self,
        index: SplitIndex,
        config: LoaderConfig,
        image_size: int,
        schedule: Schedule | None = None,
        transform: ImageTransform | None = None,
    ) -> None:
        self.index, self.config, self.image_size = index, config, image_size
        self._device = _decode_device(config)
        self._reader = ImageReader(index, config.cache, schedule)
        self._load = _image_loading(self._reader, self._device, transform)
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = _start_threads(config.threads, self._tasks)
        # Runs on close, on garbage collection and at interpreter exit: no thread outlives its loader.
        self._stop = weakref.finalize(self, _stop, self._tasks, self._threads, self._reader)

    def batches(self, requests: Iterable[Request]) -> Generator[Batch, None, None]:
        """Yield one batch a request, in order.

        Raises :class:`UserError` for unreadable storage or too many corrupt images, and :class:`RuntimeError` naming
        the sample when decoding fails in an unforeseen way.
        """
        self._require_open()
        source, pending = iter(requests), deque[_Job]()
        try:
            while True:
                self._fill(source, pending)
                if not pending:
                    return
                self._reader.advance(pending[0].batch.epoch, pending[0].batch.step)
                yield self._finish(pending.popleft())
        finally:
            for job in pending:
                job.cancelled = True

    def _require_open(self) -> None:
        if not self._stop.alive:
            raise RuntimeError("the loader is closed")

    def _fill(self, source: Iterator[Request], pending: deque[_Job]) -> None:
        self._require_open()
        while len(pending) < self.config.ahead:
            request = next(source, None)
            if request is None:
                return
            job = _Job(request, self._reader, self._load, _batch_memory(request, self.image_size, self._device))
            pending.append(job)
            for place in range(len(request.samples)):
                self._tasks.put((job, place))

    def _finish(self, job: _Job) -> Batch:
        while not self._threads and not job.done.is_set():
            _run(*self._tasks.get())
        while not job.done.wait(_LOOK_AGAIN):
            self._require_open()  # a loader closed from another thread leaves jobs that nobody will do
        if job.error is not None:
            raise job.error
        batch = job.batch
        batch.corrupt.sort(key=lambda corrupt: corrupt.sample_id)
        return batch

    def close(self) -> None:
        """Stop the threads and release the files; work in progress ends with the image in hand.

        A thread that waits in a storage driver is left behind after a few seconds; it ends when the driver returns.
        """
        self._stop()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Job:
    """A request being loaded: the memory it decodes into, and how many images are missing."""

    def __init__(self, request: Request, reader: ImageReader, load: LoadImage, memory: Tensor):
        self.reader, self.load_one = reader, load
        real = np.array(request.real, bool)
        self.batch = Batch(request.step, memory, request.samples, real, epoch=request.epoch)
        # Made at once: each view that a decode thread made would disturb the caller's thread.
        self._places = memory.unsqueeze(1).unbind(0)
        self.error: BaseException | None = None
        self.cancelled = False
        self.done = threading.Event()
        self._missing, self._lock = len(request.samples), threading.Lock()
        if not self._missing:
            self.done.set()

    def load(self, place: int) -> None:
        sample, index = int(self.batch.samples[place]), self.reader.index
        try:
            self.load_one(sample, self.batch.epoch, self._places[place])
        except CorruptImage as error:
            self._places[place].zero_()
            self.batch.real[place] = False
            found = Corrupt(index.sample_id(sample), index.shard_url(int(index.shard[sample])), str(error))
            self.batch.corrupt.append(found)

    def fail(self, place: int, error: BaseException) -> None:
        if not isinstance(error, UserError):
            sample = self.reader.index.sample_id(int(self.batch.samples[place]))
            failure = RuntimeError(f"loading sample {sample!r} failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            error = failure
        self.error = self.error or error
        self.cancelled = True

    def finish_one(self) -> None:
        with self._lock:
            self._missing -= 1
            if not self._missing:
                self.done.set()


def _image_loading(reader: ImageReader, device: str, transform: ImageTransform | None) -> LoadImage:
    """Return the function that fills one image of a batch; no method, so that jobs keep no loader alive."""

    def load(sample: int, epoch: int, target: Tensor) -> None:
        image = decode_rgb(reader.read(sample), device)
        if transform is None:
            squash_into(image, target)
        else:
            target.copy_(transform(image, epoch, sample))

    return load


def _batch_memory(request: Request, image_size: int, device: str) -> Tensor:
    shape = (len(request.samples), 3, image_size, image_size)
    pinned = device == "cpu" and torch.cuda.is_available()
    return torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last, pin_memory=pinned, device=device)


def _decode_device(config: LoaderConfig) -> str:
    if config.decode == "cuda" and not torch.cuda.is_available():
        raise UserError("loader.decode is cuda but there is no usable GPU", "set loader.decode=cpu")
    return config.decode


def _run(job: _Job, place: int) -> None:
    try:
        if not job.cancelled:
            job.load(place)
    except BaseException as error:
        job.fail(place, error)
    finally:
        job.finish_one()


def _start_threads(count: int, tasks: queue.SimpleQueue) -> list[threading.Thread]:
    """Start decode threads whose torch operators use no further threads.

    torch splits a resize among its own threads; several decode threads doing so fight for the cores. The setting
    belongs to the thread that makes it, except that threads yet to come inherit it: hence it is put back here.
    """
    inherited, ready = torch.get_num_threads(), threading.Barrier(count + 1)
    threads = [
        threading.Thread(target=_work, args=(tasks, ready), name=f"decode-{i}", daemon=True) for i in range(count)
    ]
    for thread in threads:
        thread.start()
    ready.wait()
    torch.set_num_threads(inherited)
    return threads


def _work(tasks: queue.SimpleQueue, ready: threading.Barrier) -> None:
    torch.get_num_threads()  # makes torch set this thread up, which otherwise undoes the next line later
    torch.set_num_threads(1)
    ready.wait()
    while (task := tasks.get()) is not None:
        _run(*task)
        del task  # else the last batch stays in memory for as long as the thread waits


def _stop(tasks: queue.SimpleQueue, threads: list[threading.Thread], reader: ImageReader) -> None:
    waiting: list[Any] = []
    while not tasks.empty():
        waiting.append(tasks.get())
    for _ in threads:
        tasks.put(None)
    for job, place in (task for task in waiting if task is not None):
        job.fail(place, RuntimeError("the loader was closed"))
        job.finish_one()
    reader.interrupt()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    reader.close()
