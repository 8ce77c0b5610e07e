"""`use_kernels` replaces a network's layers by native CPU kernels, for training and evaluation."""

from pathlib import Path
from typing import Optional

import mindspore as ms
from mindspore import nn

from src.config.schema import RuntimeConfig
from src.errors import UserError
from src.kernels import build, cells, operators
from src.models.layers import (
    AddReLU,
    ChannelConcat,
    ChannelSplit,
    ConvNormAct,
    GlobalPool,
    InvertedResidual,
    SqueezeExcite,
)
from src.processors import usable


def use_kernels(network: nn.Cell, runtime: RuntimeConfig, sharing: int = 1) -> None:
    """Replace layers of a network by native kernels where possible, as `runtime.kernels` says.

    The parameters and their names stay. With `auto`, MindSpore's operators are used on other devices, on CPUs where the
    kernels are not faster, and if the kernels cannot be built; in the last two cases a line on stdout gives the reason.
    With `native`, other devices and kernels that cannot be built raise `UserError`. The kernels use the processors that
    this process may use, divided by the number of processes `sharing` them, but at most `runtime_num_threads`.
    """
    if runtime.kernels == "stock":
        return
    device = ms.get_context("device_target")
    if device != "CPU":
        if runtime.kernels == "native":
            raise UserError(f"runtime.kernels: native is supported on the CPU only (found {device}); use auto or stock")
        return
    if runtime.kernels == "auto" and not build.is_fast():
        print(
            "native kernels need a processor with AVX2 and FMA to be faster, so this run has MindSpore's operators; "
            "runtime.kernels=native uses the kernels anyway",
            flush=True,
        )
        return
    try:
        library = build.build()
        build.load(library, threads=min(max(1, usable() // sharing), ms.get_context("runtime_num_threads")))
    except build.UnavailableError as reason:
        if runtime.kernels == "native":
            raise UserError(f"runtime.kernels: native kernels are not available: {reason}") from None
        print(f"native kernels are not available, so this run is two to three times slower: {reason}", flush=True)
        return
    names = names_by_id(network)
    Kernels(library).convert(network)
    restore_names(network, names)


def library_of(network: nn.Cell) -> Optional[Path]:
    """Return the library of the native kernels that a classifier uses, or None if it uses MindSpore's operators."""
    return next((cell.library for cell in network.cells() if isinstance(cell, cells.Preprocess)), None)


def names_by_id(cell: nn.Cell) -> dict[int, str]:
    """Return {id of a parameter: its name} for the parameters of a cell."""
    return {id(parameter): parameter.name for parameter in cell.get_parameters()}


def restore_names(cell: nn.Cell, names: dict[int, str]) -> None:
    """Give the parameters of a cell, which MindSpore renamed when they moved to new Cells, their old names."""
    for parameter in cell.get_parameters():
        parameter.name = names[id(parameter)]


class Kernels:
    """Replaces layers of a network by Cells that call the native kernels of a `library`.

    A cell's method `fuse(kernels)`, if it has one, decides which of its layers are computed together. It calls `join`,
    `average_pool`, `ghost`, `shuffle_unit` or `preprocess`, and may return a native Cell that replaces the whole cell.
    """

    def __init__(self, library: Path) -> None:
        self.library = library

    def convert(self, cell: nn.Cell) -> None:
        """Replace the layers inside `cell` that the kernels support."""
        if isinstance(cell, nn.SequentialCell):
            for before, after in zip(list(cell), list(cell)[1:]):
                self.join(before, after)
        for name, child in list(cell.name_cells().items()):
            names = names_by_id(child)
            native = None if isinstance(child, ConvNormAct) else self.replacement(child)
            if isinstance(child, ConvNormAct):
                self.convert_layer(child)
            elif native is None:
                self.convert(child)
            # A container looks for the positions of its cells in the names.
            restore_names(child if native is None else native, names)
            if native is None:
                continue
            if isinstance(cell, (nn.SequentialCell, nn.CellList)):
                cell[int(name)] = native
            else:
                setattr(cell, name, native)

    def replacement(self, cell: nn.Cell) -> Optional[nn.Cell]:
        """Return the native Cell that replaces `cell`, or None if its layers are converted separately."""
        if hasattr(cell, "fuse"):
            return cell.fuse(self)
        if isinstance(cell, SqueezeExcite):
            return cells.SqueezeExcite(self.library, cell) if is_squeeze(cell) else None
        if isinstance(cell, InvertedResidual):
            return self.inverted_residual(cell)
        if isinstance(cell, ChannelSplit):
            return cells.Function(operators.split(self.library, cell.half, cell.interleaved))
        if isinstance(cell, ChannelConcat):
            return cells.Function(operators.concat(self.library, cell.first_channels, cell.interleaved))
        if isinstance(cell, AddReLU):
            return cells.Function(operators.add_relu(self.library))
        if isinstance(cell, GlobalPool):
            return cells.Function(operators.mean(self.library))
        if isinstance(cell, nn.Conv2d):
            return self.convolution(cell)
        if isinstance(cell, nn.MaxPool2d) and is_halving(cell):
            return cells.Function(operators.max_pool(self.library))
        return None

    def join(self, before: nn.Cell, after: nn.Cell, shuffle_groups: int = 1) -> bool:
        """Let the depthwise layer `after` also compute BatchNorm and activation of the layer `before`, if possible.

        Return whether it does. `shuffle_groups` is the number of groups of the channel shuffle between the two layers,
        which `after` then does as well; 1 means no shuffle.
        """
        if not (is_layer(before) and is_layer(after, depthwise=True)):
            return False
        # If only one of the two layers is frozen, their BatchNorms are in different modes. One cell has one mode.
        if before.norm.gamma.requires_grad != after.norm.gamma.requires_grad:
            return False
        pairs = (before.norm, before.act), (after.norm, after.act)
        after.conv = cells.Depthwise(self.library, pairs[0], after.conv, pairs[1], shuffle_groups=shuffle_groups)
        for layer in (before, after):
            layer.norm, layer.act = nn.Identity(), None
        return True

    def preprocess(self, preprocess: nn.Cell) -> nn.Cell:
        """Return the native Cell for the normalisation of images."""
        return cells.Preprocess(self.library, preprocess)

    def average_pool(self, channels: int) -> nn.Cell:
        """Return the native Cell for 3x3 average pooling at stride 2, padded by 1."""
        return cells.AveragePool(self.library, channels)

    def ghost(self, module: nn.Cell) -> Optional[nn.Cell]:
        """Return the native Cell that replaces a `GhostModule`, or None if the kernels do not support it."""
        if not (is_layer(module.primary) and is_layer(module.ghosts, depthwise=True)):
            return None
        self.convert_convolution(module.primary)
        return cells.Ghost(self.library, module)

    def shuffle_unit(self, branch: nn.SequentialCell, interleaved: bool) -> Optional[nn.Cell]:
        """Return the native Cell for a unit of ShuffleNetV2 at stride 1, or None if the kernels do not support it.

        `interleaved` says whether the unit splits its input into even and odd channels.
        """
        first, depthwise, second = branch
        products = all(is_layer(layer) and is_product(layer.conv) for layer in (first, second))
        if not (products and is_layer(depthwise, depthwise=True) and depthwise.conv.stride == (1, 1)):
            return None
        # A frozen unit stays in evaluation mode, which the classifier switches on in the unit itself.
        if not all(layer.norm.gamma.requires_grad for layer in branch):
            return None
        return cells.ShuffleUnit(self.library, branch, interleaved)

    def inverted_residual(self, block: InvertedResidual) -> Optional[nn.Cell]:
        """Return the native Cell for an `InvertedResidual`, or None if the kernels do not support it."""
        layers = list(block.layers)
        squeeze = layers.pop(-2) if isinstance(layers[-2], SqueezeExcite) else None
        *expand, depthwise, project = layers
        products = all(is_layer(layer) and is_product(layer.conv) for layer in (*expand, project))
        if not (products and is_layer(depthwise, depthwise=True) and (squeeze is None or is_squeeze(squeeze))):
            return None
        native = cells.InvertedResidual(self.library, block, expand[0] if expand else None, depthwise, squeeze, project)
        self.convert(block)
        return native

    def convert_layer(self, layer: ConvNormAct) -> None:
        """Replace the parts of a `ConvNormAct` that the kernels support."""
        if is_layer(layer, depthwise=True):
            layer.conv = cells.Depthwise(self.library, None, layer.conv, (layer.norm, layer.act))
            layer.norm, layer.act = nn.Identity(), None
            return
        native = self.convolution(layer.conv) if isinstance(layer.conv, nn.Conv2d) else None
        if is_layer(layer) and isinstance(native, (cells.Pointwise, cells.Dense)):
            layer.conv = cells.ConvolutionNorm(self.library, native, (layer.norm, layer.act), layer.conv)
            layer.norm, layer.act = nn.Identity(), None
            return
        if is_layer(layer):
            layer.norm, layer.act = cells.Norm(self.library, layer.norm, layer.act), None
        if native is not None:
            layer.conv = native

    def convert_convolution(self, layer: ConvNormAct) -> None:
        """Replace the convolution of a `ConvNormAct` if the kernels support it."""
        native = self.convolution(layer.conv) if isinstance(layer.conv, nn.Conv2d) else None
        if native is not None:
            layer.conv = native

    def convolution(self, conv: nn.Conv2d) -> Optional[nn.Cell]:
        """Return the native Cell that replaces a convolution, or None if the kernels do not support it."""
        if not is_plain(conv):
            return None
        if is_depthwise(conv):
            return cells.Depthwise(self.library, None, conv, None)
        if conv.kernel_size == (1, 1) and conv.stride == (1, 1):
            return cells.Pointwise(self.library, conv)
        return cells.Dense(self.library, conv) if conv.in_channels <= 4 and conv.group == 1 else None


def is_halving(pool: nn.MaxPool2d) -> bool:
    """Return whether a max pooling is 3x3 at stride 2 and padded by 1 on every side, as in the stems."""
    padding = pool.padding if pool.use_pad else (0,)  # with use_pad it is (depth, height, width)
    return (pool.kernel_size, pool.stride, padding[-2:]) == (3, 2, (1, 1))


def is_layer(cell: nn.Cell, depthwise: bool = False) -> bool:
    """Return whether `cell` is a `ConvNormAct` whose BatchNorm and activation the kernels support.

    With `depthwise`, its convolution must also be a depthwise convolution that they support.
    """
    if not isinstance(cell, ConvNormAct) or not isinstance(cell.norm, nn.BatchNorm2d):
        return False
    known = cells.activation_name(cell.act) in operators.ACTIVATIONS
    return known and (not depthwise or is_depthwise(cell.conv))


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is a depthwise convolution that the kernels support."""
    return conv.group == conv.in_channels == conv.out_channels > 1 and is_plain(conv) and conv.kernel_size[0] in (3, 5)


def is_product(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is a 1x1 convolution without groups that the kernels support."""
    return is_plain(conv) and conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.group == 1


def is_squeeze(module: SqueezeExcite) -> bool:
    """Return whether the kernels support a Squeeze-and-Excitation."""
    return isinstance(module.act, nn.ReLU) and isinstance(module.gate, nn.HSigmoid)


def is_plain(conv: nn.Conv2d) -> bool:
    """Return whether a convolution has no bias, no dilation, stride 1 or 2, and padding of half the kernel."""
    padding = conv.padding if isinstance(conv.padding, tuple) else (conv.padding,)
    return (
        not conv.has_bias
        and conv.dilation == (1, 1)
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.stride in ((1, 1), (2, 2))
        and (conv.kernel_size == (1, 1) or conv.pad_mode == "pad")
        and set(padding) == {conv.kernel_size[0] // 2}
    )
