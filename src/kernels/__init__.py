"""Native CPU kernels for training and evaluation: `use_kernels` puts them into a classifier."""

import os

import mindspore as ms
from mindspore import nn

from src.errors import UserError
from src.kernels import build, cells, operators
from src.models.ghostnet import GhostModule
from src.models.layers import ChannelConcat, ChannelSplit, ConvNormAct, GlobalPool, SqueezeExcite
from src.models.shufflenet_v1 import AddReLU, ShuffleUnit


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
    convert(classifier, library)
    for parameter in classifier.get_parameters():
        parameter.name = names[id(parameter)]


def convert(cell, library):
    """Replace what the kernels compute inside `cell`."""
    if isinstance(cell, nn.SequentialCell):
        for before, after in zip(list(cell), list(cell)[1:]):
            join(before, after, library)
    elif isinstance(cell, ShuffleUnit):
        if join(cell.compress, cell.depthwise, library, runs=cell.shuffle.groups if cell.shuffle else 1):
            cell.shuffle = None
        if cell.pool is not None:
            cell.pool = cells.AveragePool(library, cell.concat.first)
    for name, child in list(cell.name_cells().items()):
        if isinstance(child, ConvNormAct):
            convert_layer(child, library)
            continue
        native = replacement(child, library)
        if native is None:
            convert(child, library)
        elif isinstance(cell, (nn.SequentialCell, nn.CellList)):
            cell[int(name)] = native
        else:
            setattr(cell, name, native)


def replacement(cell, library):
    """Return the native Cell that stands in for a whole one, or None."""
    if isinstance(cell, GhostModule) and is_layer(cell.primary) and is_layer(cell.ghosts, depthwise=True):
        convert_convolution(cell.primary, library)
        return cells.Ghost(library, cell)
    if isinstance(cell, SqueezeExcite):
        return cells.SqueezeExcite(library, cell)
    if isinstance(cell, ChannelSplit):
        return cells.Function(operators.deal(library, cell.half, cell.interleaved))
    if isinstance(cell, ChannelConcat):
        return cells.Function(operators.merge(library, cell.first, cell.interleaved))
    if isinstance(cell, AddReLU):
        return cells.Function(operators.add_relu(library))
    if isinstance(cell, GlobalPool):
        return cells.Function(operators.mean(library))
    if isinstance(cell, nn.Conv2d):
        return convolution(cell, library)
    if isinstance(cell, nn.MaxPool2d) and is_halving(cell):
        return cells.Function(operators.max_pool(library))
    return None


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


def join(before, after, library, runs=1):
    """Let the depthwise layer `after` compute BatchNorm and activation of the layer `before` it too, where it can."""
    if not (is_layer(before) and is_layer(after, depthwise=True)):
        return False
    # Where freezing ends between the two, one BatchNorm is trained and the other is not: two modes, two cells.
    if before.norm.gamma.requires_grad != after.norm.gamma.requires_grad:
        return False
    after.conv = cells.Depthwise(library, (before.norm, before.act), after.conv, (after.norm, after.act), runs=runs)
    for layer in (before, after):
        layer.norm, layer.act = nn.Identity(), None
    return True


def convert_layer(layer, library):
    """Replace a `ConvNormAct`'s parts."""
    if is_layer(layer, depthwise=True):
        layer.conv = cells.Depthwise(library, None, layer.conv, (layer.norm, layer.act))
        layer.norm, layer.act = nn.Identity(), None
        return
    if is_layer(layer):
        layer.norm, layer.act = cells.Norm(library, layer.norm, layer.act), None
    convert_convolution(layer, library)


def convert_convolution(layer, library):
    native = convolution(layer.conv, library) if isinstance(layer.conv, nn.Conv2d) else None
    if native is not None:
        layer.conv = native


def convolution(conv, library):
    """Return the native Cell for a convolution, or None."""
    if not is_plain(conv):
        return None
    if is_depthwise(conv):
        return cells.Depthwise(library, None, conv, None)
    if conv.kernel_size == (1, 1) and conv.stride == (1, 1):
        return cells.Pointwise(library, conv)
    return cells.Dense(library, conv) if conv.in_channels <= 4 and conv.group == 1 else None
