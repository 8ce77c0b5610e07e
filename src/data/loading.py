"""Batches of images for the network: uint8 (N, H, W, C) with int32 labels (N).

Image files, and augmentations of single images, use MindSpore's C++ pipeline. Arrays in memory use a few threads. Both
prepare the next batches while the network works on earlier batches.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Optional, Protocol

import mindspore.dataset as ds
import numpy as np
from PIL import Image

from src.config.schema import Config, DataConfig
from src.data.formats import reason_of, remove_abnormal_images, upright
from src.data.mindrecord import Packed
from src.data.reading import BAD, Files, Selection, prefetch
from src.data.samples import Samples
from src.data.transforms import View, eval_view, train_view
from src.errors import UserError
from src.processors import usable

MOST_WORKERS = 8  # that `data.workers: null` means


class Summing(Protocol):
    """The ranks that load one data set together, as `src/runtime/parallel.py` defines them."""

    def sum(self, values: np.ndarray) -> np.ndarray: ...


class Loader:
    """The batches of an epoch.

    With a `seed` every epoch has another order, and the incomplete last batch is dropped. Without a seed the images
    come in order, and the last batch may be smaller.

    Each of several processes, `ranks`, loads a different part of the images. Without a seed, a rank may have one image
    more than another. With `skip_bad`, an image that cannot be decoded is replaced if there is a seed, and left out if
    there is no seed. Without `skip_bad`, the first bad image raises a `UserError`.
    """

    def __init__(
        self,
        samples: Samples,
        view: View,
        batch_size: int,
        workers: int,
        seed: Optional[int] = None,
        rank: int = 0,
        ranks: int = 1,
        repeats: int = 1,
        skip_bad: bool = False,
    ) -> None:
        self.samples = samples
        self.view = view
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.repeats = repeats
        self.skip_bad = skip_bad
        self.files = Files(samples) if isinstance(samples.images, list) else None

    def __len__(self) -> int:
        """Return the number of batches per epoch; with a seed, all ranks have the same number."""
        if self.seed is not None:
            return len(self.samples) // (self.batch_size * self.ranks)
        return -(-len(range(self.rank, len(self.samples), self.ranks)) // self.batch_size)

    @property
    def depends_on_workers(self) -> bool:
        """Return whether another number of workers changes the augmentation.

        Each worker of MindSpore's pipeline has its own random numbers. The threads of `from_memory` have none.
        """
        return self.seed is not None and bool(self.view.rows)

    @property
    def bad(self) -> dict[int, str]:
        """Return the bad images found so far, which were replaced or left out: their defects by index."""
        return self.files.bad if self.files else {}

    def sources(self) -> Optional[list[str]]:
        """Return the paths of the evaluated images, in order, or None if the images are not files."""
        if self.files is None:
            return None
        return [self.files.paths[index] for index in self.order(0) if index not in self.bad]

    def order(self, epoch: int) -> np.ndarray:
        """Return the indices of the images of an epoch on this rank, int64 (number of images), in their order."""
        if self.seed is None:
            return np.arange(self.rank, len(self.samples), self.ranks)
        shuffled = np.random.default_rng((self.seed, epoch)).permutation(len(self.samples))
        # The views of an image are neighbours, so they go to different ranks (as in DeiT, arxiv.org/abs/2012.12877).
        shuffled = np.repeat(shuffled, self.repeats)
        return shuffled[: len(self) * self.batch_size * self.ranks][self.rank :: self.ranks]

    def epoch(self, epoch: int = 0, skip: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the (images, labels) of one epoch, without its first `skip` batches.

        Order and augmentation depend only on the seed, the epoch, the rank and the number of workers.
        """
        order = self.order(epoch)
        if not len(order) or skip >= len(self):
            return
        if self.view.rows:
            batches = self.from_pipeline(order, epoch, skip)
            if not self.view.batches:
                yield from batches
                return
            # A thread does the rest of the work, so that the network does not wait for it.
            yield from prefetch(
                lambda numbered: self.transform_batch(epoch, numbered[0], *numbered[1]),
                enumerate(batches, skip),
                workers=1,
            )
        else:
            yield from self.from_memory(order, epoch, skip)

    def transform_batch(
        self, epoch: int, number: int, images: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Apply the view's operations on whole batches; the random numbers do not depend on other batches."""
        generator = None if self.seed is None else np.random.default_rng((self.seed, epoch, self.rank, number))
        for operation in self.view.batches:
            images = operation(images, generator)
        return images, labels

    def from_memory(self, order: np.ndarray, epoch: int, skip: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Return an iterator of batches of arrays, which threads prepare a few batches ahead."""
        arrays = np.asarray(self.samples.images)

        def make(number):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            return self.transform_batch(epoch, number, arrays[chosen], self.samples.labels[chosen])

        return prefetch(make, range(skip, len(self)), self.workers)

    def from_pipeline(self, order: np.ndarray, epoch: int, skip: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield batches from MindSpore's pipeline; restart it after each file that its decoder rejects."""
        replace_bad = self.skip_bad and self.seed is not None
        selection = Selection(self.samples, order, self.files, replace_bad, self.workers)
        first_batch, yielded = skip, 0
        while True:
            try:
                for (images,) in self.run_pipeline(selection, epoch, skip):
                    start = skip * self.batch_size
                    skip += 1
                    images = images if images.ndim == 4 else images[..., None]
                    chosen = selection.index_at[start : start + len(images)]
                    good = chosen != BAD
                    if not good.all():
                        self.raise_unless_skipped(int(order[start + good.argmin()]))
                        images, chosen = images[good], chosen[good]
                    if len(chosen):
                        yielded += len(chosen)
                        yield images, self.samples.labels[chosen]
                break
            except RuntimeError as error:
                remove_abnormal_images()
                start = skip * self.batch_size
                if not (self.files and self.files.find_undecodable(selection, start, self.view.rows)):
                    raise UserError(f"the data pipeline failed: {reason_of(error)}") from error
        if not yielded and first_batch < len(self):
            raise UserError(f"data.root: none of the {len(order):,} evaluation images can be decoded")

    def raise_unless_skipped(self, index: int) -> None:
        """Raise the `UserError` of a bad image, except if an evaluation leaves bad images out."""
        if self.seed is not None and self.skip_bad:
            raise UserError("data.root: none of the training images can be decoded")
        if not self.skip_bad:
            raise UserError(self.bad[index])

    def run_pipeline(self, selection: Selection, epoch: int, skip: int) -> Iterator[tuple[np.ndarray]]:
        """Return an iterator of the batches (images,) without the first `skip`."""
        if self.seed is not None:
            ds.config.set_seed(int(np.random.SeedSequence((self.seed, epoch, self.rank)).generate_state(1)[0]))
        # The skipped batches are augmented too, so that the workers use the same random numbers for the other batches.
        # Their files are not decoded.
        selection.unseen = skip * self.batch_size
        if isinstance(self.samples.images, Packed):
            pipeline = self.samples.images.pipeline(selection.order, self.workers, selection.unseen)
        else:
            pipeline = ds.GeneratorDataset(selection, selection.columns, shuffle=False)
        decoding, others = self.view.rows[: self.view.decoding], self.view.rows[self.view.decoding :]
        if "orientation" in pipeline.get_col_names():
            pipeline = pipeline.map(decoding, "image", num_parallel_workers=self.workers)
            pipeline = pipeline.map(upright, ["image", "orientation"], ["image"], num_parallel_workers=self.workers)
        else:
            others = [*decoding, *others]
        if others:
            pipeline = pipeline.map(others, "image", num_parallel_workers=self.workers)
        pipeline = pipeline.batch(self.batch_size)
        batches = pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True)
        return itertools.islice(batches, skip, None)


def train_loader(
    config: Config, samples: Samples, rank: int = 0, ranks: int = 1, image_size: Optional[int] = None
) -> Loader:
    """Return the `Loader` of augmented training images; `image_size` is data.image_size by default.

    Raise a `UserError` if a batch is larger than a rank's part of the training split.
    """
    batch_size, workers = config.train.batch_size, workers_of(config.data)
    if batch_size * ranks > len(samples):
        each = f" on each of {ranks} ranks" if ranks > 1 else ""
        raise UserError(
            f"train.batch_size: is larger than the training split (found {batch_size}{each}, expected at most "
            f"{len(samples) // ranks})"
        )
    if workers > (os.cpu_count() or 1):
        raise UserError(f"data.workers: more workers than cores (found {workers}, expected at most {os.cpu_count()})")
    samples = with_channels(samples, config.data.channels)
    data = config.data.model_copy(update={"image_size": image_size or config.data.image_size})
    view = train_view(data, config.augment, samples.are_files)
    skip_bad = config.data.on_bad_image == "skip"
    repeats = config.augment.repeats
    return Loader(samples, view, batch_size, workers, config.train.seed, rank, ranks, repeats, skip_bad)


def eval_loader(
    config: Config,
    samples: Samples,
    batch_size: Optional[int] = None,
    rank: int = 0,
    ranks: int = 1,
    seed: Optional[int] = None,
) -> Loader:
    """Return the `Loader` that yields every image once, in order; `batch_size` is train.batch_size by default.

    With a `seed`, the images are shuffled, and all ranks have the same number of complete batches. Raise a `UserError`
    if there are fewer images than ranks.
    """
    if ranks > len(samples):
        raise UserError(
            f"data.name: fewer evaluation images than ranks (found {len(samples)} images, {ranks} ranks); use fewer "
            "processes"
        )
    samples = with_channels(samples, config.data.channels)
    view = eval_view(config.data, samples.are_files)
    # The number of workers does not change the evaluation, so another machine with fewer cores can use fewer.
    workers = min(workers_of(config.data), os.cpu_count() or 1)
    skip_bad = config.data.on_bad_image == "skip"
    batch_size = batch_size or config.train.batch_size
    return Loader(samples, view, batch_size, workers, seed, rank, ranks, skip_bad=skip_bad)


def workers_of(data: DataConfig, sharing: int = 1) -> int:
    """Return `data.workers`, or its default where `sharing` processes use the same processors."""
    return data.workers or max(1, min(usable() // sharing, MOST_WORKERS))


def count_bad(loaders: Sequence[Loader], ranks: Summing) -> int:
    """Return the number of different bad images that the `loaders` of one split found on all `ranks`."""
    found = np.zeros(len(loaders[0].samples), np.int64)
    for loader in loaders:
        found[[*map(int, loader.bad)]] = 1
    return int(np.count_nonzero(ranks.sum(found)))


def with_channels(samples: Samples, channels: int) -> Samples:
    """Return samples whose arrays have the network's number of channels; files are converted after decoding."""
    if not isinstance(samples.images, np.ndarray) or samples.images.shape[-1] == channels:
        return samples
    if channels == 3:
        images = np.repeat(samples.images, 3, axis=-1)
    else:
        images = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in samples.images])[..., None]
    return replace(samples, images=images)
