"""Batches of images for the network: uint8 (N, H, W, C) with int32 labels (N), through MindSpore's pipeline."""

import itertools
import os
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
from PIL import Image

from src.data.datasets import Samples, image_problem
from src.data.transforms import eval_transforms, train_transforms
from src.errors import UserError


class Selection:
    """What MindSpore's GeneratorDataset reads: (file's bytes or array, label) of `samples` in the given order."""

    def __init__(self, samples, order):
        self.samples = samples
        self.order = order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, position):
        index = self.order[position]
        image = self.samples.images[index]
        if self.samples.are_files:
            image = np.fromfile(image, np.uint8)
        return image, self.samples.labels[index]


class Loader:
    """An epoch's batches; with a `seed` shuffled anew each epoch, otherwise in order and with the last, smaller one.

    Of several processes, `ranks`, each has its own share of the images; without a seed, one may have an image more.
    """

    def __init__(self, samples, operations, batch_size, workers, seed=None, rank=0, ranks=1):
        self.samples = samples
        self.operations = operations
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.rank = rank
        self.ranks = ranks

    def __len__(self):
        """Return the number of batches an epoch, the same on all ranks where there is a seed."""
        if self.seed is not None:
            return len(self.samples) // (self.batch_size * self.ranks)
        return -(-len(range(self.rank, len(self.samples), self.ranks)) // self.batch_size)

    def epoch(self, epoch=0, skip=0):
        """Yield the (images, labels) of one epoch from its batch number `skip` on.

        Order and augmentation depend on seed, epoch, rank and workers alone.
        """
        if self.seed is None:
            order = np.arange(self.rank, len(self.samples), self.ranks)
        else:
            shuffled = np.random.default_rng((self.seed, epoch)).permutation(len(self.samples))
            order = shuffled[: len(self) * self.batch_size * self.ranks][self.rank :: self.ranks]
            ds.config.set_seed(int(np.random.SeedSequence((self.seed, epoch, self.rank)).generate_state(1)[0]))
        readers = self.workers if self.samples.are_files else 1
        pipeline = ds.GeneratorDataset(
            Selection(self.samples, order),
            ["image", "label"],
            shuffle=False,
            num_parallel_workers=readers,
            python_multiprocessing=False,
        )
        pipeline = pipeline.map(self.operations, "image", num_parallel_workers=self.workers)
        pipeline = pipeline.batch(self.batch_size)
        try:
            batches = pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True)
            # What is skipped is prepared all the same: only so do the workers draw the same numbers for the rest.
            for images, labels in itertools.islice(batches, skip, None):
                yield (images if images.ndim == 4 else images[..., None]), labels
        except RuntimeError as error:
            raise UserError(pipeline_problem(self.samples, str(error))) from error


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
    operations = train_transforms(data, config.augment, samples.are_files)
    return Loader(samples, operations, batch_size, workers, config.train.seed, rank, ranks)


def eval_loader(config, samples, batch_size=None, rank=0, ranks=1):
    """Return the `Loader` that shows every image once, in order; `batch_size` is the training's by default.

    Fewer images than ranks are a `UserError`.
    """
    if ranks > len(samples):
        raise UserError(f"data.name: the {len(samples)} images to evaluate are fewer than the {ranks} processes")
    samples = with_channels(samples, config.data.channels)
    operations = eval_transforms(config.data, samples.are_files)
    # The number of workers does not change what is evaluated, so another machine may have fewer cores.
    workers = min(config.data.workers, os.cpu_count() or 1)
    return Loader(samples, operations, batch_size or config.train.batch_size, workers, rank=rank, ranks=ranks)


def with_channels(samples, channels):
    """Return samples whose arrays have the network's number of channels; files are converted when decoded."""
    if samples.are_files or samples.images.shape[-1] == channels:
        return samples
    if channels == 3:
        images = np.repeat(samples.images, 3, axis=-1)
    else:
        images = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in samples.images])[..., None]
    return Samples(images, samples.labels, samples.classes)


def pipeline_problem(samples, message):
    """Return one line for a failure inside MindSpore's pipeline, with the file at fault."""
    # Its decoder leaves a copy of a bad image in the working folder.
    for left_behind in Path().glob("abnormal_image.*"):
        left_behind.unlink()
    for file in samples.images if samples.are_files else ():
        problem = image_problem(file, decode=True)
        if problem:
            return problem
    reason = next((line for line in message.splitlines() if "[ERROR]" in line), message)
    return f"the data pipeline failed: {reason.replace('[ERROR]', '').strip()}"
