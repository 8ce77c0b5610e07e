"""Native CPU kernels for training and evaluation: `use_kernels` puts them into a classifier."""

import os

import mindspore as ms
from mindspore import nn

from src.errors import UserError
from src.kernels import build, cells, operators
from src.models.layers import ConvNormAct


def use_kernels(classifier, runtime):
    """Let the native kernels do what they can of a classifier's work, as `runtime.kernels` says; weights and their
    names stay.

    `auto` falls back on MindSpore's operators where there is no CPU or no compiler, the latter with a line that says so;
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
    except build.Unavailable as reason:
        if runtime.kernels == "native":
            raise UserError(f"runtime.kernels: native kernels are not available: {reason}") from None
        print(f"without the native kernels, several times slower: {reason}", flush=True)
        return
    names = {id(parameter): parameter.name for parameter in classifier.get_parameters()}
    convert(classifier, library)
    for parameter in classifier.get_parameters():
        parameter.name = names[id(parameter)]


def convert(cell, library):
    """Replace what the kernels compute inside `cell`, from the outside in."""
    children = list(cell.cells())
    if isinstance(cell, nn.SequentialCell):
        for before, after in zip(children, children[1:]):
            if is_layer(before) and is_layer(after) and is_depthwise(after.conv):
                join(before, after, library)
    for child in children:
        if is_layer(child):
            convert_layer(child, library)
        else:
            convert(child, library)


def is_layer(cell):
    return isinstance(cell, ConvNormAct)


def is_depthwise(conv):
    return (
        isinstance(conv, nn.Conv2d)
        and conv.group == conv.in_channels == conv.out_channels
        and conv.kernel_size[0] in (3, 5)
        and conv.stride[0] in (1, 2)
    )


def join(before, after, library):
    """Let the depthwise layer `after` compute the BatchNorm and activation of the layer `before` it, too."""
    if can_join(before) and can_join(after):
        after.conv = cells.Depthwise(library, (before.norm, before.act), after.conv, (after.norm, after.act))
        for layer in (before, after):
            layer.norm, layer.act = nn.Identity(), None


def convert_layer(layer, library):
    conv = layer.conv
    if is_depthwise(conv) and can_join(layer):
        layer.conv = cells.Depthwise(library, None, conv, (layer.norm, layer.act))
        layer.norm, layer.act = nn.Identity(), None
    elif isinstance(conv, nn.Conv2d):
        if conv.kernel_size == (1, 1) and conv.stride == (1, 1):
            layer.conv = cells.Pointwise(library, conv)
        elif conv.in_channels <= 4:
            layer.conv = cells.Dense(library, conv)
    if can_join(layer):
        layer.norm, layer.act = cells.Norm(library, layer.norm, layer.act), None


def can_join(layer):
    """Say whether a layer's BatchNorm and activation are ones that the kernels compute together."""
    return isinstance(layer.norm, nn.BatchNorm2d) and cells.activation_name(layer.act) in operators.ACTIVATIONS
