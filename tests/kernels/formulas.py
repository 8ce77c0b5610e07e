"""The kernels' functions in float64 NumPy, written from their definitions."""

import numpy as np


def convolution(x, weight, dy, stride, padding, groups):
    """Return ([y], [dx, dweight]) of a convolution, computed as a sum over the kernel's taps."""
    x, weight, dy = (array.astype(np.float64) for array in (x, weight, dy))
    channels, height, width = x.shape[1:]
    kernel = weight.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    y, dpadded, dweight = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    ins, outs = channels // groups, weight.shape[0] // groups
    for g in range(groups):
        inner, outer = slice(g * ins, (g + 1) * ins), slice(g * outs, (g + 1) * outs)
        for i in range(kernel):
            for j in range(kernel):
                rows = slice(i, i + (dy.shape[2] - 1) * stride + 1, stride)
                columns = slice(j, j + (dy.shape[3] - 1) * stride + 1, stride)
                tap = padded[:, inner, rows, columns]
                y[:, outer] += np.einsum("oc,nchw->nohw", weight[outer, :, i, j], tap)
                dpadded[:, inner, rows, columns] += np.einsum("oc,nohw->nchw", weight[outer, :, i, j], dy[:, outer])
                dweight[outer, :, i, j] = np.einsum("nohw,nchw->oc", dy[:, outer], tap)
    return [y], [dpadded[:, :, padding : padding + height, padding : padding + width], dweight]


def batch_norm(x, gamma, beta, dy, act, epsilon):
    """Return y, dx, dgamma, dbeta, mean and unbiased variance of BatchNorm with activation."""
    x, gamma, beta, dy = (array.astype(np.float64) for array in (x, gamma, beta, dy))
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    count = x.size // x.shape[1]
    deviation = np.sqrt(variance + epsilon)[:, None, None]
    normal = (x - mean[:, None, None]) / deviation
    z = normal * gamma[:, None, None] + beta[:, None, None]
    y, slope = {
        None: (z, np.ones_like(z)),
        "ReLU": (np.maximum(z, 0), z > 0),
        "ReLU6": (np.clip(z, 0, 6), (z > 0) & (z < 6)),
        "HSwish": (z * np.clip(z + 3, 0, 6) / 6, np.where(z < -3, 0, np.where(z > 3, 1, (2 * z + 3) / 6))),
    }[act]
    g = dy * slope
    dgamma, dbeta = (g * normal).sum((0, 2, 3)), g.sum((0, 2, 3))
    dnormal = g * gamma[:, None, None]
    means = [part.mean((0, 2, 3))[:, None, None] for part in (dnormal, dnormal * normal)]
    dx = (dnormal - means[0] - normal * means[1]) / deviation
    return y, dx, dgamma, dbeta, mean, variance * count / max(count - 1, 1)


def max_pool(x, dy):
    """Return y and dx of 3x3 max pooling at stride 2, padded by 1; the first maximum gets the gradient."""
    y, dx = np.empty(dy.shape), np.zeros(x.shape)
    for n, c, i, j in np.ndindex(dy.shape):
        window = [
            (row, column)
            for row in range(2 * i - 1, 2 * i + 2)
            for column in range(2 * j - 1, 2 * j + 2)
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
        ]
        largest = max(window, key=lambda at: x[(n, c, *at)])
        y[n, c, i, j] = x[(n, c, *largest)]
        dx[(n, c, *largest)] += dy[n, c, i, j]
    return y, dx
