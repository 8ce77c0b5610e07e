"""The native kernels as MindSpore operators; all tensors are float32, maps are (N, C, H, W).

Each factory takes the path of the built library and returns a function of tensors with its gradient.
"""

import mindspore as ms
import numpy as np
from mindspore import ops

ACTIVATIONS = {None: 0, "ReLU": 1, "ReLU6": 2, "HSwish": 3}  # by the class names of mindspore.nn; as in kernels.cpp


def custom(library, function, out_shape, outputs, bprop=None, kind=()):
    """Return the operator `function` of the library; `out_shape` gives the shapes of its `outputs` from its inputs'.

    `kind` is all that tells it from other operators of the same function.
    """
    dtypes = ms.float32 if outputs == 1 else (ms.float32,) * outputs
    operator = ops.Custom(f"{library}:{function}", out_shape, dtypes, "aot", bprop=bprop)
    # MindSpore takes operators of equal attributes for one and uses the shapes and the gradient of the first for all.
    operator.add_prim_attr("kind", str(kind))
    return operator


def norm_settings(norm):
    """Return (epsilon, momentum, activation, present, batch statistics) of a norm, or of none."""
    if norm is None:
        return (0.0, 0.0, 0, 0, 0)
    return (norm.epsilon, norm.momentum, ACTIVATIONS[norm.activation], 1, norm.batch_statistics)


def settings_of(*values):
    return ms.Tensor(np.float32(values))


def norm_activation(library, norm):
    """BatchNorm and activation: f(x, gamma, beta, moving_mean, moving_variance) -> y; the moving statistics advance."""
    kind = norm_settings(norm)
    settings = settings_of(*kind)
    backward = custom(library, "norm_backward", lambda x, dy, gamma, beta, *_: (x, gamma, beta), 3)

    def bprop(x, gamma, beta, moving_mean, moving_variance, settings, out, dout):
        dx, dgamma, dbeta = backward(x, dout[0], gamma, beta, out[1], out[2], settings)
        return dx, dgamma, dbeta, ops.zeros_like(gamma), ops.zeros_like(gamma), ops.zeros_like(settings)

    forward = custom(library, "norm_forward", lambda x, gamma, *_: (x, gamma, gamma), 3, bprop, kind)

    def function(x, gamma, beta, moving_mean, moving_variance):
        return forward(x, gamma, beta, moving_mean, moving_variance, settings)[0]

    return function


def depthwise(library, stride, before, after, keep=False, runs=1):
    """Depthwise convolution, padded to keep the size at stride 1, with a norm `before` and `after` it, each or None.

    f(x, gamma, beta, moving_mean, moving_variance, weight, gamma, beta, moving_mean, moving_variance) -> z. `keep` puts
    the normalised input before the result, 2 C channels in all; `runs` takes the input's channels from so many equal
    runs in turn.
    """
    kind = (stride, keep, runs, *norm_settings(before), *norm_settings(after))
    settings = settings_of(*kind)

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
        none1, none2 = ops.zeros_like(gamma1), ops.zeros_like(gamma2)
        return dx, dgamma1, dbeta1, none1, none1, dweight, dgamma2, dbeta2, none2, none2, ops.zeros_like(settings)

    forward = custom(library, "depthwise_forward", out_shape, 5, bprop, kind)

    def function(x, gamma1, beta1, mean1, variance1, weight, gamma2, beta2, mean2, variance2):
        return forward(x, gamma1, beta1, mean1, variance1, weight, gamma2, beta2, mean2, variance2, settings)[0]

    return function


def pointwise(library):
    """1x1 convolution, grouped where the weight has fewer input channels than x: f(x, weight) -> y."""
    backward = custom(library, "pointwise_backward", lambda x, dy, weight: (x, weight), 2)

    def bprop(x, weight, out, dout):
        return backward(x, dout, weight)

    return custom(library, "pointwise_forward", lambda x, weight: (x[0], weight[0], *x[2:]), 1, bprop)


def dense(library, stride, padding):
    """KxK convolution that mixes all channels, for few of them: f(x, weight) -> y."""
    settings = settings_of(stride, padding)

    def out_shape(x, weight, _):
        height, width = ((side + 2 * padding - weight[2]) // stride + 1 for side in x[2:])
        return x[0], weight[0], height, width

    weight_gradient = custom(library, "dense_weight_gradient", lambda x, dy, weight, _: weight, 1)
    input_gradient = custom(library, "dense_input_gradient", lambda x, dy, weight, _: x, 1)

    def bprop(x, weight, settings, out, dout):
        # Two operators: where the input needs no gradient, as an image does not, the compiler drops the second.
        return (
            input_gradient(x, dout, weight, settings),
            weight_gradient(x, dout, weight, settings),
            ops.zeros_like(settings),
        )

    forward = custom(library, "dense_forward", out_shape, 1, bprop, (stride, padding))

    def function(x, weight):
        return forward(x, weight, settings)

    return function


def max_pool(library):
    """3x3 max pooling at stride 2, padded by 1: f(x) -> y."""
    backward = custom(library, "max_pool_backward", lambda x, dy: x, 1)

    def bprop(x, out, dout):
        return (backward(x, dout),)

    return custom(library, "max_pool_forward", lambda x: (*x[:2], *((side - 1) // 2 + 1 for side in x[2:])), 1, bprop)


def merged_shape(a, b, _):
    return a[0], a[1] + b[1], *a[2:]


def dealt_shapes(first):
    """Return the shape function of `deal_channels` for `first` channels in the first part."""
    return lambda x, _: ((x[0], first, *x[2:]), (x[0], x[1] - first, *x[2:]))


def merge(library, first, interleaved):
    """Channels of two maps, one after the other or, of equally many, in turn: f(a, b) -> both; a has `first`."""
    settings = settings_of(interleaved)
    dealt = custom(library, "deal_channels", dealt_shapes(first), 2, kind=first)

    def bprop(a, b, settings, out, dout):
        da, db = dealt(dout, settings)
        return da, db, ops.zeros_like(settings)

    forward = custom(library, "merge_channels", merged_shape, 1, bprop, (first, interleaved))

    def function(a, b):
        return forward(a, b, settings)

    return function


def deal(library, first, interleaved):
    """The `first` channels and the rest, or the even and the odd ones: f(x) -> (a, b)."""
    settings = settings_of(interleaved)
    merged = custom(library, "merge_channels", merged_shape, 1)

    def bprop(x, settings, out, dout):
        return merged(dout[0], dout[1], settings), ops.zeros_like(settings)

    forward = custom(library, "deal_channels", dealt_shapes(first), 2, bprop, (first, interleaved))

    def function(x):
        return forward(x, settings)

    return function


def add_relu(library):
    """f(a, b) -> relu(a + b), of equal shapes."""
    backward = custom(library, "add_relu_backward", lambda y, dy: y, 1)

    def bprop(a, b, out, dout):
        gradient = backward(out, dout)
        return gradient, gradient

    return custom(library, "add_relu_forward", lambda a, b: a, 1, bprop)


def mean(library):
    """The mean of each map: f(x) -> (N, C, 1, 1)."""
    backward = custom(library, "mean_backward", lambda x, dy: x, 1)

    def bprop(x, out, dout):
        return (backward(x, dout),)

    return custom(library, "mean_forward", lambda x: (*x[:2], 1, 1), 1, bprop)


def scale(library):
    """Each map times its factor, (N, C, 1, 1): f(x, factors) -> y."""
    backward = custom(library, "scale_backward", lambda x, dy, factors: (x, factors), 2)

    def bprop(x, factors, out, dout):
        return backward(x, dout, factors)

    return custom(library, "scale_forward", lambda x, factors: x, 1, bprop)
