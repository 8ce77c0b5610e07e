"""What a network costs: trainable parameters and multiply-accumulates (MACs) of convolutions and dense layers."""

import mindspore as ms
import numpy as np
from mindspore import nn


def count_params(network):
    """Return the number of trainable parameters; BatchNorm's moving statistics do not count."""
    return sum(parameter.size for parameter in network.trainable_params())


def count_macs(classifier, image_size, channels):
    """Return the MACs of one image of `image_size` x `image_size`, counted while the network runs on a blank one."""
    total = 0

    def count(layer, _, output):
        nonlocal total
        # Each output value takes one MAC a weight of its filter: kernel area times input channels of its group.
        total += output.size * int(np.prod(layer.weight.shape[1:]))

    layers = [cell for _, cell in classifier.cells_and_names() if isinstance(cell, (nn.Conv2d, nn.Dense))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    mode, training = ms.get_context("mode"), classifier.training
    # Hooks run op by op only.
    ms.set_context(mode=ms.PYNATIVE_MODE)
    classifier.set_train(False)
    classifier(ms.Tensor(np.zeros((1, image_size, image_size, channels), np.uint8)))
    classifier.set_train(training)
    ms.set_context(mode=mode)
    for hook in hooks:
        hook.remove()
    return total
