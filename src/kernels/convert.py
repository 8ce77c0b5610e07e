"""Native CPU kernels for training and evaluation: `use_kernels` puts them into a classifier."""

import os

import mindspore as ms
from mindspore import nn

from src.errors import UserError
from src.kernels import build, cells, operators
from src.models.layers import AddReLU, ChannelConcat, ChannelSplit, ConvNormAct, GlobalPool, SqueezeExcite


def use_kernels(classifier, runtime):
    """Let the native kernels do what they can of a classifier's work, as `runtime.kernels` says; weights and their
    names stay.

    `auto` falls back on MindSpore's operators on other devices and, saying so, where the kernels cannot be built;
    `native` is a `UserError` there.
    """
    if runtime.kernels == "stock":
        return
    device = ms.get_context("device_target")
    if device != "CPU":
        if runtime.kernels == "native":
            raise UserError(f"runtime.kernels: native is for the CPU, and this run is on {device}")
        return
    try:
        library = build.build()
        build.load(library, threads=min(len(os.sched_getaffinity(0)), ms.get_context("runtime_num_threads")))
    except build.UnavailableError as reason:
        if runtime.kernels == "native":
            raise UserError(f"runtime.kernels: native kernels are not available: {reason}") from None
        print(f"without the native kernels, two to three times slower: {reason}", flush=True)
        return
    names = {id(parameter): parameter.name for parameter in classifier.get_parameters()}
    Kernels(library).convert(classifier)
    for parameter in classifier.get_parameters():
        parameter.name = names[id(parameter)]


class Kernels:
    """Replaces what the native kernels of a `library` compute inside a network.

    A cell that has a method `fuse(kernels)` tells which of its layers may be computed together, by calling `join`,
    `average_pool` or `ghost`; it may return a native Cell that takes its place.
    """

    def __init__(self, library):
        self.library = library

    def convert(self, cell):
        """Replace what the kernels compute inside `cell`."""
        if isinstance(cell, nn.SequentialCell):
            for before, after in zip(list(cell), list(cell)[1:]):
                self.join(before, after)
        for name, child in list(cell.name_cells().items()):
            if isinstance(child, ConvNormAct):
                self.convert_layer(child)
                continue
            native = self.replacement(child)
            if native is None:
                self.convert(child)
            elif isinstance(cell, (nn.SequentialCell, nn.CellList)):
                cell[int(name)] = native
            else:
                setattr(cell, name, native)

    def replacement(self, cell):
        """Return the native Cell that takes the place of `cell`, or None where its layers are converted each."""
        if hasattr(cell, "fuse"):
            return cell.fuse(self)
        if isinstance(cell, SqueezeExcite):
            return cells.SqueezeExcite(self.library, cell)
        if isinstance(cell, ChannelSplit):
            return cells.Function(operators.deal(self.library, cell.half, cell.interleaved))
        if isinstance(cell, ChannelConcat):
            return cells.Function(operators.merge(self.library, cell.first, cell.interleaved))
        if isinstance(cell, AddReLU):
            return cells.Function(operators.add_relu(self.library))
        if isinstance(cell, GlobalPool):
            return cells.Function(operators.mean(self.library))
        if isinstance(cell, nn.Conv2d):
            return self.convolution(cell)
        if isinstance(cell, nn.MaxPool2d) and is_halving(cell):
            return cells.Function(operators.max_pool(self.library))
        return None

    def join(self, before, after, runs=1):
        """Let the depthwise layer `after` compute BatchNorm and activation of the layer `before` it too, where it can.

        Return whether it does. It reads its channels from `runs` equal runs in turn, as a channel shuffle orders them.
        """
        if not (is_layer(before) and is_layer(after, depthwise=True)):
            return False
        # Where freezing ends between the two, one BatchNorm is trained and the other is not: two modes, two cells.
        if before.norm.gamma.requires_grad != after.norm.gamma.requires_grad:
            return False
        pairs = (before.norm, before.act), (after.norm, after.act)
        after.conv = cells.Depthwise(self.library, pairs[0], after.conv, pairs[1], runs=runs)
        for layer in (before, after):
            layer.norm, layer.act = nn.Identity(), None
        return True

    def average_pool(self, channels):
        """Return the native Cell of a 3x3 average pooling at stride 2, padded by 1, of so many channels."""
        return cells.AveragePool(self.library, channels)

    def ghost(self, module):
        """Return the native Cell of a `GhostModule`, or None where the kernels cannot take it whole."""
        if not (is_layer(module.primary) and is_layer(module.ghosts, depthwise=True)):
            return None
        self.convert_convolution(module.primary)
        return cells.Ghost(self.library, module)

    def convert_layer(self, layer):
        """Replace a `ConvNormAct`'s parts."""
        if is_layer(layer, depthwise=True):
            layer.conv = cells.Depthwise(self.library, None, layer.conv, (layer.norm, layer.act))
            layer.norm, layer.act = nn.Identity(), None
            return
        if is_layer(layer):
            layer.norm, layer.act = cells.Norm(self.library, layer.norm, layer.act), None
        self.convert_convolution(layer)

    def convert_convolution(self, layer):
        native = self.convolution(layer.conv) if isinstance(layer.conv, nn.Conv2d) else None
        if native is not None:
            layer.conv = native

    def convolution(self, conv):
        """Return the native Cell for a convolution, or None."""
        if not is_plain(conv):
            return None
        if is_depthwise(conv):
            return cells.Depthwise(self.library, None, conv, None)
        if conv.kernel_size == (1, 1) and conv.stride == (1, 1):
            return cells.Pointwise(self.library, conv)
        return cells.Dense(self.library, conv) if conv.in_channels <= 4 and conv.group == 1 else None


def is_halving(pool):
    """Say whether a max pooling is 3x3 at stride 2 and padded by 1 on every side, as in the stems."""
    padding = pool.padding if pool.use_pad else (0,)  # of use_pad's three numbers the first is the depth's
    return (pool.kernel_size, pool.stride, padding[-2:]) == (3, 2, (1, 1))


def is_layer(cell, depthwise=False):
    """Say whether the kernels can take a layer's BatchNorm and activation together, and its depthwise convolution."""
    if not isinstance(cell, ConvNormAct) or not isinstance(cell.norm, nn.BatchNorm2d):
        return False
    known = cells.activation_name(cell.act) in operators.ACTIVATIONS
    return known and (not depthwise or is_depthwise(cell.conv))


def is_depthwise(conv):
    return conv.group == conv.in_channels == conv.out_channels > 1 and is_plain(conv) and conv.kernel_size[0] in (3, 5)


def is_plain(conv):
    """Say whether a convolution is like this project's: no bias, no dilation, padded to keep the size at stride 1."""
    padding = conv.padding if isinstance(conv.padding, tuple) else (conv.padding,)
    return (
        not conv.has_bias
        and conv.dilation == (1, 1)
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.stride in ((1, 1), (2, 2))
        and (conv.kernel_size == (1, 1) or conv.pad_mode == "pad")
        and set(padding) == {conv.kernel_size[0] // 2}
    )
