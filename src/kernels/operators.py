"""The native kernels as MindSpore operators. All tensors but images are float32; feature maps are (N, C, H, W).

Each factory takes the path of the compiled library. It returns a function of tensors that MindSpore can differentiate.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import mindspore as ms
import numpy as np
from mindspore import ops

from src.kernels.settings import activation_numbers, numbers
from src.models.declaration import Shape

# Class names in mindspore.nn, with the names in settings.h.
ACTIVATIONS = {None: "kNone", "ReLU": "kRelu", "ReLU6": "kRelu6", "HSwish": "kHardSwish"}
Operator = Callable[..., Any]  # takes tensors, returns a tensor or a tuple of tensors


class NormSettings(NamedTuple):
    """The settings of a BatchNorm with its activation. `momentum` is the share of the old moving statistics.

    `activation` is a key of ACTIVATIONS. `batch_statistics` is true in training.
    """

    epsilon: float
    momentum: float
    activation: Optional[str]
    batch_statistics: bool


def custom(
    library: Path,
    function: str,
    out_shape: Callable[..., Any],
    outputs: int,
    bprop: Optional[Callable[..., Any]] = None,
    kind: Any = (),
) -> Operator:
    """Return the operator that calls `function` of the library and has a number of `outputs`.

    `out_shape` returns the shapes of the outputs for the shapes of the inputs. `kind` must differ between operators of
    the same function whose `out_shape` or `bprop` differ.
    """
    dtypes = ms.float32 if outputs == 1 else (ms.float32,) * outputs
    operator = ops.Custom(f"{library}:{function}", out_shape, dtypes, "aot", bprop=bprop)
    # MindSpore takes operators with equal attributes for the same operator: all get the shapes and gradient of the
    # first.
    operator.add_prim_attr("kind", str(kind))
    return operator


def norm_values(norm: Optional[NormSettings]) -> dict[str, float]:
    """Return the members of NormSettings in settings.h. Without a norm, all are 0."""
    if norm is None:
        return dict.fromkeys(("epsilon", "momentum", "activation", "present", "batch_statistics"), 0)
    activation = activation_numbers()[ACTIVATIONS[norm.activation]]
    return {**norm._asdict(), "activation": activation, "present": 1}


def tensor(values: tuple[float, ...]) -> ms.Tensor:
    """Return an operator's input of settings."""
    return ms.Tensor(np.array(values, np.float32))


def preprocess(library: Path) -> Operator:
    """Return the normalisation of images: f(images, mean, factor) -> (images - mean) * factor, as (N, C, H, W).

    `images` is uint8 (N, H, W, C), `mean` and `factor` are (C,). There are no gradients.
    """

    def bprop(images, mean, factor, out, dout):
        return ops.zeros_like(images), ops.zeros_like(mean), ops.zeros_like(factor)

    return custom(library, "preprocess", lambda images, *_: (images[0], images[3], *images[1:3]), 1, bprop)


def norm_activation(library: Path, norm: NormSettings) -> Operator:
    """Return BatchNorm with activation: f(x, gamma, beta, moving_mean, moving_variance) -> y.

    In training, the operator updates the moving statistics in place.
    """
    kind = numbers("NormSettings", norm_values(norm))
    settings = tensor(kind)
    backward = custom(library, "norm_backward", lambda x, dy, gamma, beta, *_: (x, gamma, beta), 3)

    def bprop(x, gamma, beta, moving_mean, moving_variance, settings, out, dout):
        dx, dgamma, dbeta = backward(x, dout[0], gamma, beta, out[1], out[2], settings)
        return dx, dgamma, dbeta, ops.zeros_like(gamma), ops.zeros_like(gamma), ops.zeros_like(settings)

    forward = custom(library, "norm_forward", lambda x, gamma, *_: (x, gamma, gamma), 3, bprop, kind)

    def function(x, gamma, beta, moving_mean, moving_variance):
        return forward(x, gamma, beta, moving_mean, moving_variance, settings)[0]

    return function


def depthwise(
    library: Path,
    stride: int,
    before: Optional[NormSettings],
    after: Optional[NormSettings],
    keep: bool = False,
    shuffle_groups: int = 1,
) -> Operator:
    """Return a depthwise convolution with a BatchNorm and activation `before` and `after` it, each optional.

    f(x, gamma, beta, moving_mean, moving_variance, weight, gamma, beta, moving_mean, moving_variance) -> z. The padding
    keeps the size at stride 1. With `keep`, the output starts with the normalised input and has 2 C channels. With
    `shuffle_groups` above 1, the input passes a channel shuffle with this number of groups first.
    """
    own = {"stride": stride, "keep": keep, "shuffle_groups": shuffle_groups}
    kind = numbers("DepthwiseSettings", {**own, "before": norm_values(before), "after": norm_values(after)})
    settings = tensor(kind)

    def out_shape(x, gamma1, beta1, mean1, variance1, weight, gamma2, *_):
        height, width = ((side - 1) // stride + 1 for side in x[2:])
        channels = x[1] * 2 if keep else x[1]
        return (x[0], channels, height, width), gamma1, gamma1, gamma2, gamma2

    backward = custom(
        library,
        "depthwise_backward",
        lambda x, dz, gamma1, beta1, mean1, inverse1, weight, gamma2, *_: (x, gamma1, gamma1, weight, gamma2, gamma2),
        6,
    )

    def bprop(x, gamma1, beta1, mean1, variance1, weight, gamma2, beta2, mean2, variance2, settings, out, dout):
        dx, dgamma1, dbeta1, dweight, dgamma2, dbeta2 = backward(
            x, dout[0], gamma1, beta1, out[1], out[2], weight, gamma2, beta2, out[3], out[4], settings
        )
        zero1, zero2 = ops.zeros_like(gamma1), ops.zeros_like(gamma2)
        return dx, dgamma1, dbeta1, zero1, zero1, dweight, dgamma2, dbeta2, zero2, zero2, ops.zeros_like(settings)

    forward = custom(library, "depthwise_forward", out_shape, 5, bprop, kind)

    def function(x, gamma1, beta1, mean1, variance1, weight, gamma2, beta2, mean2, variance2):
        return forward(x, gamma1, beta1, mean1, variance1, weight, gamma2, beta2, mean2, variance2, settings)[0]

    return function


def pointwise(library: Path) -> Operator:
    """Return a 1x1 convolution: f(x, weight) -> y. It is grouped if the weight has fewer input channels than x."""
    backward = custom(library, "pointwise_backward", lambda x, dy, weight: (x, weight), 2)

    def bprop(x, weight, out, dout):
        return backward(x, dout, weight)

    return custom(library, "pointwise_forward", pointwise_shape, 1, bprop)


def pointwise_shape(x: Shape, weight: Shape, *_: Shape) -> Shape:
    """Return the shape of a 1x1 convolution's output."""
    return x[0], weight[0], *x[2:]


def dense(library: Path, stride: int, padding: int) -> Operator:
    """Return an ungrouped KxK convolution for few input channels: f(x, weight) -> y."""
    settings = tensor(numbers("DenseSettings", {"stride": stride, "padding": padding}))
    weight_gradient = custom(library, "dense_weight_gradient", lambda x, dy, weight, _: weight, 1)
    input_gradient = custom(library, "dense_input_gradient", lambda x, dy, weight, _: x, 1)

    def bprop(x, weight, settings, out, dout):
        # Two operators, so that the compiler drops the first if the input is an image, which needs no gradient.
        return (
            input_gradient(x, dout, weight, settings),
            weight_gradient(x, dout, weight, settings),
            ops.zeros_like(settings),
        )

    forward = custom(library, "dense_forward", dense_shape(stride, padding), 1, bprop, (stride, padding))

    def function(x, weight):
        return forward(x, weight, settings)

    return function


def dense_shape(stride: int, padding: int) -> Callable[..., Shape]:
    """Return the function of the shapes of x and weight that gives the shape of a KxK convolution's output."""

    def out_shape(x, weight, *_):
        height, width = ((side + 2 * padding - weight[2]) // stride + 1 for side in x[2:])
        return x[0], weight[0], height, width

    return out_shape


def pointwise_norm(library: Path, norm: NormSettings) -> Operator:
    """Return a 1x1 convolution with BatchNorm and activation for inference, where the norm has moving statistics.

    f(x, weight, gamma, beta, moving_mean, moving_variance) -> y.
    """
    return convolution_norm(library, "pointwise_norm", pointwise_shape, norm_values(norm), norm, pointwise(library))


def dense_norm(library: Path, stride: int, padding: int, norm: NormSettings) -> Operator:
    """Return `dense` with BatchNorm and activation for inference, as in `pointwise_norm`."""
    values = {"convolution": {"stride": stride, "padding": padding}, "norm": norm_values(norm)}
    convolution = dense(library, stride, padding)
    return convolution_norm(library, "dense_norm", dense_shape(stride, padding), values, norm, convolution)


def convolution_norm(
    library: Path,
    function_name: str,
    out_shape: Callable[..., Shape],
    values: dict[str, Any],
    norm: NormSettings,
    convolution: Operator,
) -> Operator:
    """Return an operator for inference that computes a `convolution` and the norm after it in one pass.

    Its gradient, which training does not need, is computed by the two operators.
    """
    struct = {"pointwise_norm": "NormSettings", "dense_norm": "DenseNormSettings"}[function_name]
    settings = tensor(numbers(struct, values))
    normalise = norm_activation(library, norm)

    def separate(x, weight, gamma, beta, moving_mean, moving_variance):
        return normalise(convolution(x, weight), gamma, beta, moving_mean, moving_variance)

    gradient = ops.GradOperation(get_all=True, sens_param=True)(separate)

    def bprop(x, weight, gamma, beta, moving_mean, moving_variance, settings, out, dout):
        return (*gradient(x, weight, gamma, beta, moving_mean, moving_variance, dout), ops.zeros_like(settings))

    forward = custom(library, function_name, out_shape, 1, bprop, numbers(struct, values))

    def function(x, weight, gamma, beta, moving_mean, moving_variance):
        return forward(x, weight, gamma, beta, moving_mean, moving_variance, settings)

    return function


def max_pool(library: Path) -> Operator:
    """Return 3x3 max pooling at stride 2, padded by 1: f(x) -> y."""
    backward = custom(library, "max_pool_backward", lambda x, dy: x, 1)

    def bprop(x, out, dout):
        return (backward(x, dout),)

    return custom(library, "max_pool_forward", lambda x: (*x[:2], *((side - 1) // 2 + 1 for side in x[2:])), 1, bprop)


def concat_shape(a: Shape, b: Shape, _: Shape) -> Shape:
    """Return the shape of the concatenation of `a` and `b` along the channels."""
    return a[0], a[1] + b[1], *a[2:]


def split_shapes(first_channels: int) -> Callable[[Shape, Shape], tuple[Shape, Shape]]:
    """Return the shape function of `split`: the first output has `first_channels` channels."""
    return lambda x, _: ((x[0], first_channels, *x[2:]), (x[0], x[1] - first_channels, *x[2:]))


def concat(library: Path, first_channels: int, interleaved: bool) -> Operator:
    """Return the concatenation of two feature maps' channels: f(a, b) -> both. `a` has `first_channels` channels.

    With `interleaved`, the channels alternate, and `a` and `b` have the same number of channels.
    """
    settings = tensor(numbers("HalvesSettings", {"interleaved": interleaved}))
    split_gradient = custom(library, "deal_channels", split_shapes(first_channels), 2, kind=first_channels)

    def bprop(a, b, settings, out, dout):
        da, db = split_gradient(dout, settings)
        return da, db, ops.zeros_like(settings)

    forward = custom(library, "merge_channels", concat_shape, 1, bprop, (first_channels, interleaved))

    def function(a, b):
        return forward(a, b, settings)

    return function


def split(library: Path, first_channels: int, interleaved: bool) -> Operator:
    """Return the inverse of `concat`: f(x) -> (a, b), the first channels and the rest, or even and odd channels."""
    settings = tensor(numbers("HalvesSettings", {"interleaved": interleaved}))
    concat_gradient = custom(library, "merge_channels", concat_shape, 1)

    def bprop(x, settings, out, dout):
        return concat_gradient(dout[0], dout[1], settings), ops.zeros_like(settings)

    forward = custom(library, "deal_channels", split_shapes(first_channels), 2, bprop, (first_channels, interleaved))

    def function(x):
        return forward(x, settings)

    return function


def add_relu(library: Path) -> Operator:
    """Return f(a, b) -> relu(a + b) for equal shapes."""
    backward = custom(library, "add_relu_backward", lambda y, dy: y, 1)

    def bprop(a, b, out, dout):
        gradient = backward(out, dout)
        return gradient, gradient

    return custom(library, "add_relu_forward", lambda a, b: a, 1, bprop)


def mean(library: Path) -> Operator:
    """Return global average pooling: f(x) -> (N, C, 1, 1)."""
    backward = custom(library, "mean_backward", lambda x, dy: x, 1)

    def bprop(x, out, dout):
        return (backward(x, dout),)

    return custom(library, "mean_forward", lambda x: (*x[:2], 1, 1), 1, bprop)


def squeeze_excite(library: Path) -> Operator:
    """Return Squeeze-and-Excitation: f(x, reduce, reduce_bias, expand, expand_bias) -> y.

    `reduce` (R, C, 1, 1) and `expand` (C, R, 1, 1) are 1x1 convolutions of the means of x, with ReLU and hard sigmoid.
    """

    def out_shape(x, reduce, *_):
        return x, x[:2], (x[0], reduce[0]), x[:2]

    backward = custom(
        library,
        "squeeze_backward",
        lambda x, dy, reduce, expand, *_: (x, reduce, (reduce[0],), expand, (expand[0],)),
        5,
    )

    def bprop(x, reduce, reduce_bias, expand, expand_bias, out, dout):
        return backward(x, dout[0], reduce, expand, out[1], out[2], out[3])

    forward = custom(library, "squeeze_forward", out_shape, 4, bprop)

    def function(x, reduce, reduce_bias, expand, expand_bias):
        return forward(x, reduce, reduce_bias, expand, expand_bias)[0]

    return function


def shuffle_unit(library: Path, interleaved: bool, norms: Sequence[NormSettings]) -> Operator:
    """Return ShuffleNetV2's unit at stride 1: f(x, first, depthwise, second) -> y.

    Half of the channels pass, and the branch convolves the other half: 1x1, depthwise, 1x1. Each of the three arguments
    after x is (weight, gamma, beta, moving_mean, moving_variance). `norms` are the settings of the three norms. With
    `interleaved`, the odd channels are the branch's and its output follows the channels that pass; otherwise the last
    channels are the branch's, and its output alternates with the channels that pass.
    """
    values = dict(zip(("first", "second", "third"), map(norm_values, norms)))
    kind = numbers("ShuffleUnitSettings", {"interleaved": interleaved, **values})
    settings = tensor(kind)

    def out_shape(x, weight1, gamma1, *_):
        branch = x[0], weight1[0], *x[2:]
        return x, *[branch] * 3, *[gamma1] * 6

    def gradient_shapes(x, dy, weight1, gamma1, beta1, mean1, inverse1, weight2, *_):
        return x, *[shape for weight in (weight1, weight2, weight1) for shape in (weight, gamma1, gamma1)]

    backward = custom(library, "shuffle_unit_backward", gradient_shapes, 10)

    def bprop(x, w1, g1, b1, m1, v1, w2, g2, b2, m2, v2, w3, g3, b3, m3, v3, settings, out, dout):
        statistics = out[4:]
        dx, dw1, dg1, db1, dw2, dg2, db2, dw3, dg3, db3 = backward(
            *(x, dout[0]),
            *(w1, g1, b1, statistics[0], statistics[1]),
            *(w2, g2, b2, statistics[2], statistics[3]),
            *(w3, g3, b3, statistics[4], statistics[5]),
            *(out[1], out[2], out[3], settings),
        )
        none = ops.zeros_like(g1)
        return (
            dx,
            dw1,
            dg1,
            db1,
            none,
            none,
            dw2,
            dg2,
            db2,
            none,
            none,
            dw3,
            dg3,
            db3,
            none,
            none,
            ops.zeros_like(settings),
        )

    forward = custom(library, "shuffle_unit_forward", out_shape, 10, bprop, kind)

    def function(x, first, depthwise, second):
        return forward(x, *first, *depthwise, *second, settings)[0]

    return function


def shuffle_unit_inference(library: Path, interleaved: bool, norms: Sequence[NormSettings]) -> Operator:
    """Return `shuffle_unit` for inference, where the norms have moving statistics.

    Its gradient, which training does not need unless the unit is frozen, is computed by `shuffle_unit`.
    """
    values = dict(zip(("first", "second", "third"), map(norm_values, norms)))
    kind = numbers("ShuffleUnitSettings", {"interleaved": interleaved, **values})
    settings = tensor(kind)
    whole = shuffle_unit(library, interleaved, norms)

    def separate(x, *arguments):
        return whole(x, arguments[:5], arguments[5:10], arguments[10:15])

    gradient = ops.GradOperation(get_all=True, sens_param=True)(separate)

    def bprop(x, w1, g1, b1, m1, v1, w2, g2, b2, m2, v2, w3, g3, b3, m3, v3, settings, out, dout):
        arguments = w1, g1, b1, m1, v1, w2, g2, b2, m2, v2, w3, g3, b3, m3, v3
        return *gradient(x, *arguments, dout), ops.zeros_like(settings)

    forward = custom(library, "shuffle_unit_inference", lambda x, *_: x, 1, bprop, kind)

    def function(x, first, depthwise, second):
        return forward(x, *first, *depthwise, *second, settings)

    return function


def inverted_residual(
    library: Path,
    stride: int,
    norms: tuple[Optional[NormSettings], NormSettings, NormSettings],
    squeezes: bool,
    residual: bool,
) -> Operator:
    """Return MobileNetV2's inverted residual for inference, where the norms have moving statistics.

    f(x, expand, depthwise, squeeze, project) -> y. Three arguments are (weight, gamma, beta, moving_mean,
    moving_variance), and `squeeze` is (reduce, reduce_bias, expand, expand_bias). `norms` are the settings of the three
    norms. If the first one is None, there is no expansion. The Tensors of layers that do not exist have one element.
    The gradient, which training does not need unless the block is frozen, is computed by the separate operators.
    """
    values = dict(zip(("first", "second", "third"), map(norm_values, norms)))
    kind = numbers("InvertedResidualSettings", {"stride": stride, "residual": residual, "squeezes": squeezes, **values})
    settings = tensor(kind)
    product, middle = pointwise(library), depthwise(library, stride, None, norms[1])
    excite = squeeze_excite(library)
    first = norm_activation(library, norms[0]) if norms[0] is not None else None
    third = norm_activation(library, norms[2])
    unused = [ms.Tensor(np.zeros(1, np.float32))] * 4

    def separate(x, *arguments):
        y = x
        if first is not None:
            y = first(product(y, arguments[0]), *arguments[1:5])
        y = middle(y, *unused, *arguments[5:10])
        if squeezes:
            y = excite(y, *arguments[10:14])
        y = third(product(y, arguments[14]), *arguments[15:19])
        return x + y if residual else y

    gradient = ops.GradOperation(get_all=True, sens_param=True)(separate)

    def bprop(x, w1, g1, b1, m1, v1, w2, g2, b2, m2, v2, r, rb, e, eb, w3, g3, b3, m3, v3, settings, out, dout):
        arguments = w1, g1, b1, m1, v1, w2, g2, b2, m2, v2, r, rb, e, eb, w3, g3, b3, m3, v3
        return *gradient(x, *arguments, dout), ops.zeros_like(settings)

    def out_shape(x, *shapes):
        return x[0], shapes[14][0], *((side - 1) // stride + 1 for side in x[2:])

    forward = custom(library, "inverted_residual", out_shape, 1, bprop, kind)

    def function(x, expand, depthwise, squeeze, project):
        return forward(x, *expand, *depthwise, *squeeze, *project, settings)

    return function


def sgd(library: Path, momentum: float, nesterov: bool, rules: list[tuple[float, float]]) -> Operator:
    """Return the update of all weights by SGD: f(weights, gradients, velocities, rate) -> a Tensor to depend on.

    The first three are tuples of Tensors; `rules` has the weight decay of each weight and its factor of the rate. The
    operator changes weights and velocities in place, which MindSpore does not know. So an operator that reads them must
    depend on its output, or come before it because of the data, as the operators that compute the gradients do. That is
    why one operator has to update all weights: the gradient of one weight is computed from others.
    """
    settings = tensor(numbers("SgdSettings", {"momentum": momentum, "nesterov": nesterov}))
    each = ms.Tensor(np.array(rules, np.float32))
    operator = custom(library, "sgd", lambda *_: (1,), 1, kind=(momentum, nesterov, rules))

    def function(weights, gradients, velocities, rate):
        return operator(*weights, *gradients, *velocities, each, rate, settings)

    return function
