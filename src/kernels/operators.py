"""The native kernels as MindSpore operators; all tensors are float32, maps are (N, C, H, W).

Each factory takes the path of the built library and returns a function of tensors with its gradient.
"""

import mindspore as ms
import numpy as np
from mindspore import ops

ACTIVATIONS = {None: 0, "ReLU": 1, "ReLU6": 2, "HSwish": 3}  # by the class names of mindspore.nn; as in kernels.cpp


def custom(library, function, out_shape, outputs, bprop=None):
    """Return the operator `function` of the library; `out_shape` gives the shapes of its `outputs` from its inputs'."""
    dtypes = ms.float32 if outputs == 1 else (ms.float32,) * outputs
    return ops.Custom(f"{library}:{function}", out_shape, dtypes, "aot", bprop=bprop)


def norm_settings(norm):
    """Return (epsilon, momentum, activation, present, batch statistics) of a norm, or of none."""
    if norm is None:
        return (0.0, 0.0, 0, 0, 0)
    return (norm.epsilon, norm.momentum, ACTIVATIONS[norm.activation], 1, norm.batch_statistics)


def settings_of(*values):
    return ms.Tensor(np.float32(values))


def norm_activation(library, norm):
    """BatchNorm and activation: f(x, gamma, beta, moving_mean, moving_variance) -> y; the moving statistics advance."""
    settings = settings_of(*norm_settings(norm))
    backward = custom(library, "norm_backward", lambda x, dy, gamma, beta, *_: (x, gamma, beta), 3)

    def bprop(x, gamma, beta, moving_mean, moving_variance, settings, out, dout):
        dx, dgamma, dbeta = backward(x, dout[0], gamma, beta, out[1], out[2], settings)
        return dx, dgamma, dbeta, ops.zeros_like(gamma), ops.zeros_like(gamma), ops.zeros_like(settings)

    forward = custom(library, "norm_forward", lambda x, gamma, *_: (x, gamma, gamma), 3, bprop)

    def function(x, gamma, beta, moving_mean, moving_variance):
        return forward(x, gamma, beta, moving_mean, moving_variance, settings)[0]

    return function


def depthwise(library, stride, before, after, keep=False, runs=1):
    """Depthwise convolution, padded to keep the size at stride 1, with a norm `before` and `after` it, each or None.

    f(x, gamma, beta, moving_mean, moving_variance, weight, gamma, beta, moving_mean, moving_variance) -> z. `keep` puts
    the normalised input before the result, 2 C channels in all; `runs` takes the input's channels from so many equal
    runs in turn.
    """
    settings = settings_of(stride, keep, runs, *norm_settings(before), *norm_settings(after))

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

    forward = custom(library, "depthwise_forward", out_shape, 5, bprop)

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

    forward = custom(library, "dense_forward", out_shape, 1, bprop)

    def function(x, weight):
        return forward(x, weight, settings)

    return function
