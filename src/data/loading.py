"""Batches of images for the network: uint8 (N, H, W, C) with int32 labels (N).

Files and single images go through MindSpore's C++ pipeline, arrays in memory through a few threads; both prepare
batches while the network works on those before.
"""

import itertools
import os
from dataclasses import replace

import mindspore.dataset as ds
import numpy as np
from PIL import Image

from src.data.formats import remove_left_behind
from src.data.mindrecord import Packed
from src.data.reading import BAD, Files, Selection, made_ahead
from src.data.transforms import eval_view, train_view
from src.errors import UserError


class Loader:
    """An epoch's batches; with a `seed` shuffled anew each epoch, otherwise in order and with the last, smaller one.

    Of several processes, `ranks`, each has its own share of the images; without a seed, one may have an image more.
    With `skip_bad`, images that cannot be decoded are replaced where there is a seed and left out where there is none;
    otherwise the first one is a `UserError`.
    """

    def __init__(self, samples, view, batch_size, workers, seed=None, rank=0, ranks=1, repeats=1, skip_bad=False):
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

    def __len__(self):
        """Return the number of batches an epoch, the same on all ranks where there is a seed."""
        if self.seed is not None:
            return len(self.samples) // (self.batch_size * self.ranks)
        return -(-len(range(self.rank, len(self.samples), self.ranks)) // self.batch_size)

    @property
    def bad(self):
        """The bad images met so far, which were replaced or left out: what is wrong with them, by index."""
        return self.files.bad if self.files else {}

    def sources(self):
        """Return the paths of the images that an evaluation has shown, in order, or None if they are no files."""
        if self.files is None:
            return None
        return [self.samples.images[index] for index in self.order(0) if index not in self.bad]

    def order(self, epoch):
        """Return the indices of an epoch's images."""
        if self.seed is None:
            return np.arange(self.rank, len(self.samples), self.ranks)
        shuffled = np.random.default_rng((self.seed, epoch)).permutation(len(self.samples))
        # An image's views stand side by side, so that ranks share them (as in DeiT, arxiv.org/abs/2012.12877).
        shuffled = np.repeat(shuffled, self.repeats)
        return shuffled[: len(self) * self.batch_size * self.ranks][self.rank :: self.ranks]

    def epoch(self, epoch=0, skip=0):
        """Yield the (images, labels) of one epoch from its batch number `skip` on.

        Order and augmentation depend on seed, epoch, rank and workers alone.
        """
        order = self.order(epoch)
        if not len(order):
            return
        if self.view.rows:
            batches = self.from_pipeline(order, epoch, skip)
            yield from (self.finish(epoch, number, *batch) for number, batch in enumerate(batches, skip))
        else:
            yield from self.from_memory(order, epoch, skip)

    def finish(self, epoch, number, images, labels):
        """Apply the view's operations on whole batches; their draws belong to the batch, not to those before it."""
        generator = None if self.seed is None else np.random.default_rng((self.seed, epoch, self.rank, number))
        for operation in self.view.batches:
            images = operation(images, generator)
        return images, labels

    def from_memory(self, order, epoch, skip):
        """Return an iterator of batches of arrays, made by threads a few batches ahead."""

        def make(number):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            return self.finish(epoch, number, self.samples.images[chosen], self.samples.labels[chosen])

        return made_ahead(make, range(skip, len(self)), self.workers)

    def from_pipeline(self, order, epoch, skip):
        """Yield batches of MindSpore's pipeline; it is started once more for a file that its decoder refuses."""
        replace_bad = self.skip_bad and self.seed is not None
        selection = Selection(self.samples, order, self.files, replace_bad, self.workers)
        first, shown = skip, 0
        while True:
            try:
                for (images,) in self.run_pipeline(selection, epoch, skip):
                    start = skip * self.batch_size
                    skip += 1
                    images = images if images.ndim == 4 else images[..., None]
                    chosen = selection.shown[start : start + len(images)]
                    good = chosen != BAD
                    if not good.all():
                        self.refuse_bad(int(order[start + good.argmin()]))
                        images, chosen = images[good], chosen[good]
                    if len(chosen):
                        shown += len(chosen)
                        yield images, self.samples.labels[chosen]
                break
            except RuntimeError as error:
                remove_left_behind()
                start = skip * self.batch_size
                if not (self.files and self.files.find_refused(selection, start, self.view.rows)):
                    raise UserError(f"the data pipeline failed: {reason_of(error)}") from error
        if not shown and first < len(self):
            raise UserError(f"data.on_bad_image: skip: none of the {len(order):,} images to evaluate can be decoded")

    def refuse_bad(self, index):
        """Raise the `UserError` of a bad image unless bad ones are to be left out."""
        if self.seed is not None and self.skip_bad:
            raise UserError("data.on_bad_image: skip: none of the training images can be decoded")
        if not self.skip_bad:
            raise UserError(self.files.bad[index])

    def run_pipeline(self, selection, epoch, skip):
        """Return an iterator of the batches (images,) from number `skip` on."""
        if self.seed is not None:
            ds.config.set_seed(int(np.random.SeedSequence((self.seed, epoch, self.rank)).generate_state(1)[0]))
        if isinstance(self.samples.images, Packed):
            pipeline = self.samples.images.pipeline(selection.order, self.workers)
        else:
            pipeline = ds.GeneratorDataset(selection, ["image"], shuffle=False)
        pipeline = pipeline.map(self.view.rows, "image", num_parallel_workers=self.workers).batch(self.batch_size)
        batches = pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True)
        # What is skipped is prepared all the same: only so do the workers draw the same numbers for the rest.
        return itertools.islice(batches, skip, None)


def train_loader(config, samples, rank=0, ranks=1, image_size=None):
    """Return the `Loader` of augmented training images, of data.image_size unless told another.

    A batch larger than a rank's share of the set is a `UserError`.
    """
    batch_size, workers = config.train.batch_size, config.data.workers
    if batch_size * ranks > len(samples):
        each = f" on each of {ranks} ranks" if ranks > 1 else ""
        raise UserError(f"train.batch_size: {batch_size}{each} is more than the {len(samples)} training images")
    if workers > (os.cpu_count() or 1):
        raise UserError(f"data.workers: {workers} is more than this machine's {os.cpu_count()} cores")
    samples = with_channels(samples, config.data.channels)
    data = config.data.model_copy(update={"image_size": image_size or config.data.image_size})
    view = train_view(data, config.augment, samples.are_files)
    skip_bad = config.data.on_bad_image == "skip"
    repeats = config.augment.repeats
    return Loader(samples, view, batch_size, workers, config.train.seed, rank, ranks, repeats, skip_bad)


def eval_loader(config, samples, batch_size=None, rank=0, ranks=1):
    """Return the `Loader` that shows every image once, in order; `batch_size` is the training's by default.

    Fewer images than ranks are a `UserError`.
    """
    if ranks > len(samples):
        raise UserError(f"data.name: the {len(samples)} images to evaluate are fewer than the {ranks} processes")
    samples = with_channels(samples, config.data.channels)
    view = eval_view(config.data, samples.are_files)
    # The number of workers does not change what is evaluated, so another machine may have fewer cores.
    workers = min(config.data.workers, os.cpu_count() or 1)
    skip_bad = config.data.on_bad_image == "skip"
    batch_size = batch_size or config.train.batch_size
    return Loader(samples, view, batch_size, workers, rank=rank, ranks=ranks, skip_bad=skip_bad)


def count_bad(loaders, ranks):
    """Return how many images of one set, different ones, its `loaders` on all `ranks` found bad."""
    found = np.zeros(len(loaders[0].samples), np.int64)
    for loader in loaders:
        found[[*map(int, loader.bad)]] = 1
    return int(np.count_nonzero(ranks.sum(found)))


def with_channels(samples, channels):
    """Return samples whose arrays have the network's number of channels; files are converted when decoded."""
    if samples.are_files or samples.images.shape[-1] == channels:
        return samples
    if channels == 3:
        images = np.repeat(samples.images, 3, axis=-1)
    else:
        images = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in samples.images])[..., None]
    return replace(samples, images=images)


def reason_of(error):
    """Return the line of a failure inside MindSpore that says what happened."""
    message = str(error)
    reason = next((line for line in message.splitlines() if "[ERROR]" in line), message)
    return reason.replace("[ERROR]", "").strip()
