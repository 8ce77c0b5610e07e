"""Random weights and images that PyTorch's side and ours can each make from a name, instead of storing megabytes."""

import zlib

import numpy as np


def random_tensor(name, shape):
    """A float32 value of the size that trained networks have, so that signals neither die nor explode on their way.

    `name` is PyTorch's: a 1-D `weight` is BatchNorm's.
    """
    # RandomState's stream is frozen for all versions of NumPy.
    state = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) > 1:
        value = state.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif name.endswith(("weight", "running_var")):
        value = state.uniform(0.5, 1.0, shape)
    else:
        value = state.normal(0, 0.2, shape)
    return value.astype(np.float32)


def random_images():
    """Two images, uint8 (2, 224, 224, 3): noise, and noise that fades from left to right."""
    noise = np.random.RandomState(0).randint(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    noise[1] = noise[1] * np.linspace(1, 0, 224)[:, None]
    return noise
