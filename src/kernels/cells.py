"""Cells that call the native operators. They keep the parameters of the stock Cells that they replace."""

from pathlib import Path
from typing import Any, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import nn

from src.kernels import operators
from src.kernels.operators import NormSettings

NormAct = tuple[nn.BatchNorm2d, Optional[nn.Cell]]  # a BatchNorm and the activation that follows it, if any


def activation_name(act: Optional[nn.Cell]) -> Optional[str]:
    """Return the class name of an activation Cell, or None if there is no activation."""
    return type(act).__name__ if act is not None else None


def norm_settings(norm: nn.BatchNorm2d, act: Optional[nn.Cell], batch_statistics: bool) -> NormSettings:
    """Return the settings of a BatchNorm and its activation for one of the two modes."""
    # The Cell's momentum is the share of the new statistics; the operator's is the share of the old statistics.
    return NormSettings(norm.eps, 1 - norm.momentum, activation_name(act), batch_statistics)


class Preprocess(nn.Cell):
    """The normalisation of images and their conversion from (N, H, W, C) to (N, C, H, W)."""

    def __init__(self, library: Path, preprocess: nn.Cell) -> None:
        super().__init__()
        self.library = library
        self.mean, self.scale = preprocess.mean, preprocess.scale
        self.channel_means = ms.Tensor(preprocess.mean.asnumpy().reshape(-1))
        self.channel_scales = ms.Tensor(preprocess.scale.asnumpy().reshape(-1))
        self.operator = operators.preprocess(library)

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        return self.operator(images, self.channel_means, self.channel_scales)


class Norm(nn.Cell):
    """BatchNorm and activation in one operator."""

    def __init__(self, library: Path, norm: nn.BatchNorm2d, act: Optional[nn.Cell]) -> None:
        super().__init__()
        self.gamma, self.beta = norm.gamma, norm.beta
        self.moving_mean, self.moving_variance = norm.moving_mean, norm.moving_variance
        self.train_operator = operators.norm_activation(library, norm_settings(norm, act, True))
        self.infer_operator = operators.norm_activation(library, norm_settings(norm, act, False))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        operator = self.train_operator if self.training else self.infer_operator
        return operator(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)


class Pointwise(nn.Cell):
    """1x1 convolution, with or without groups."""

    def __init__(self, library: Path, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.operator = operators.pointwise(library)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.operator(x, self.weight)


class Dense(nn.Cell):
    """KxK convolution with few input channels."""

    def __init__(self, library: Path, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.operator = operators.dense(library, conv.stride[0], conv.kernel_size[0] // 2)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.operator(x, self.weight)


class ConvolutionNorm(nn.Cell):
    """A 1x1 convolution or a `Dense` one with the BatchNorm and activation after it: one operator in inference."""

    def __init__(self, library: Path, convolution: Union[Pointwise, Dense], pair: NormAct, conv: nn.Conv2d) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, Norm(library, *pair)
        settings = norm_settings(*pair, batch_statistics=False)
        if isinstance(convolution, Pointwise):
            self.infer_operator = operators.pointwise_norm(library, settings)
        else:
            self.infer_operator = operators.dense_norm(library, conv.stride[0], conv.kernel_size[0] // 2, settings)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        if self.training:
            return self.norm(self.convolution(x))
        norm = self.norm
        return self.infer_operator(
            x, self.convolution.weight, norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance
        )


class Depthwise(nn.Cell):
    """Depthwise convolution with the BatchNorm and activation `before` and `after` it, each optional.

    `operators.depthwise` explains `keep` and `shuffle_groups`.
    """

    def __init__(
        self,
        library: Path,
        before: Optional[NormAct],
        conv: nn.Conv2d,
        after: Optional[NormAct],
        keep: bool = False,
        shuffle_groups: int = 1,
    ) -> None:
        super().__init__()
        self.weight = conv.weight
        unused = ms.Tensor(np.zeros(1, np.float32))  # stands for the parameters of a norm that does not exist
        for name, pair in (("before", before), ("after", after)):
            for key in ("gamma", "beta", "moving_mean", "moving_variance"):
                setattr(self, f"{name}_{key}", getattr(pair[0], key) if pair else unused)

        def operator(batch_statistics):
            settings_before, settings_after = (
                norm_settings(*pair, batch_statistics) if pair else None for pair in (before, after)
            )
            return operators.depthwise(library, conv.stride[0], settings_before, settings_after, keep, shuffle_groups)

        self.train_operator, self.infer_operator = operator(True), operator(False)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        operator = self.train_operator if self.training else self.infer_operator
        return operator(
            x,
            self.before_gamma,
            self.before_beta,
            self.before_moving_mean,
            self.before_moving_variance,
            self.weight,
            self.after_gamma,
            self.after_beta,
            self.after_moving_mean,
            self.after_moving_variance,
        )


class AveragePool(nn.Cell):
    """3x3 average pooling at stride 2, padded by 1, as a depthwise convolution with weights 1/9.

    The average includes the padding's zeros.
    """

    def __init__(self, library: Path, channels: int) -> None:
        super().__init__()
        self.unused = ms.Tensor(np.zeros(1, np.float32))
        self.weight = ms.Tensor(np.full((channels, 1, 3, 3), 1 / 9, np.float32))
        self.operator = operators.depthwise(library, 2, None, None)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        unused = self.unused
        return self.operator(x, unused, unused, unused, unused, self.weight, unused, unused, unused, unused)


class Function(nn.Cell):
    """An operator without weights."""

    def __init__(self, operator: operators.Operator) -> None:
        super().__init__()
        self.operator = operator

    def construct(self, *feature_maps: ms.Tensor) -> Any:
        return self.operator(*feature_maps)


class Ghost(nn.Cell):
    """A `GhostModule` with as many ghosts as primary channels: its convolution, then one operator for the rest."""

    def __init__(self, library: Path, module: nn.Cell) -> None:
        super().__init__()
        primary, ghosts = module.primary, module.ghosts
        self.conv = primary.conv
        self.ghosts = Depthwise(library, (primary.norm, primary.act), ghosts.conv, (ghosts.norm, ghosts.act), keep=True)
        self.out_channels = module.out_channels
        self.surplus = module.surplus

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        both = self.ghosts(self.conv(x))
        return both[:, : self.out_channels] if self.surplus else both


class SqueezeExcite(nn.Cell):
    """Squeeze-and-Excitation in one operator."""

    def __init__(self, library: Path, module: nn.Cell) -> None:
        super().__init__()
        self.reduce, self.expand = module.reduce, module.expand
        self.operator = operators.squeeze_excite(library)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.operator(x, self.reduce.weight, self.reduce.bias, self.expand.weight, self.expand.bias)


class ShuffleUnit(nn.Cell):
    """ShuffleNetV2's unit at stride 1 in one operator. `branch` are its three convolutions, each with a BatchNorm."""

    def __init__(self, library: Path, branch: nn.SequentialCell, interleaved: bool) -> None:
        super().__init__()
        self.first, self.depthwise, self.second = (Layer(layer) for layer in branch)
        train, infer = ([norm_settings(layer.norm, layer.act, mode) for layer in branch] for mode in (True, False))
        self.train_operator = operators.shuffle_unit(library, interleaved, train)
        self.infer_operator = operators.shuffle_unit_inference(library, interleaved, infer)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        operator = self.train_operator if self.training else self.infer_operator
        return operator(x, parameters(self.first), parameters(self.depthwise), parameters(self.second))


class InvertedResidual(nn.Cell):
    """An `InvertedResidual`, whose layers the kernels compute one by one in training, and together in inference.

    `expand` is None in a block without expansion, and `squeeze` in a block without SE.
    """

    def __init__(
        self,
        library: Path,
        block: nn.Cell,
        expand: Optional[nn.Cell],
        depthwise: nn.Cell,
        squeeze: Optional[nn.Cell],
        project: nn.Cell,
    ) -> None:
        super().__init__()
        self.block = block
        self.expand, self.depthwise, self.project = Layer(expand), Layer(depthwise), Layer(project)
        self.squeeze = Squeeze(squeeze)
        norms = (
            norm_settings(expand.norm, expand.act, False) if expand is not None else None,
            norm_settings(depthwise.norm, depthwise.act, False),
            norm_settings(project.norm, project.act, False),
        )
        stride = depthwise.conv.stride[0]
        self.operator = operators.inverted_residual(library, stride, norms, squeeze is not None, block.residual)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        if self.training:
            return self.block(x)
        expand, depthwise, project = parameters(self.expand), parameters(self.depthwise), parameters(self.project)
        squeeze = self.squeeze
        return self.operator(
            x, expand, depthwise, (squeeze.reduce, squeeze.reduce_bias, squeeze.expand, squeeze.expand_bias), project
        )


class Layer(nn.Cell):
    """The parameters of a `ConvNormAct`, or Tensors of one element without a layer."""

    def __init__(self, layer: Optional[nn.Cell]) -> None:
        super().__init__()
        unused = ms.Tensor(np.zeros(1, np.float32))
        norm = layer.norm if layer is not None else None
        self.weight = layer.conv.weight if layer is not None else ms.Tensor(np.zeros((1, 1, 1, 1), np.float32))
        for key in ("gamma", "beta", "moving_mean", "moving_variance"):
            setattr(self, key, getattr(norm, key) if norm is not None else unused)


class Squeeze(nn.Cell):
    """The parameters of a `SqueezeExcite`, or Tensors of one element without it."""

    def __init__(self, module: Optional[nn.Cell]) -> None:
        super().__init__()
        for key in ("reduce", "expand"):
            conv = getattr(module, key) if module is not None else None
            shapes = (1, 1, 1, 1), (1,)
            tensors = (conv.weight, conv.bias) if conv else (ms.Tensor(np.zeros(shape, np.float32)) for shape in shapes)
            for name, value in zip((key, f"{key}_bias"), tensors):
                setattr(self, name, value)


def parameters(layer: Layer) -> tuple[ms.Tensor, ...]:
    """Return the parameters of a layer in the order of the operators' arguments."""
    return layer.weight, layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance
