"""The names that other libraries give to the layers of our networks.

Each function of a library and a network takes our backbone and yields pairs (our layer name, their layer name).
`SOURCES` lists these functions. `src/weights/pretrained.py` adds the names of the tensors in a layer.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple, Optional

from mindspore import nn

from src.config.schema import SAME
from src.models.layers import ConvNormAct

Pairs = Iterator[tuple[str, str]]
LayerNames = Callable[[nn.Cell], Pairs]


def unit(ours: str, conv: str, norm: str) -> list[tuple[str, str]]:
    """Return the pairs of the two layers of a `ConvNormAct`."""
    return [(f"{ours}.conv", conv), (f"{ours}.norm", norm)]


def numbered(ours: str, theirs: str, index: int = 0) -> list[tuple[str, str]]:
    """Return the pairs of a `ConvNormAct` that the library stores as layers `index` and `index + 1` of a sequence."""
    return unit(ours, f"{theirs}{index}", f"{theirs}{index + 1}")


def stages(stage_of: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (stage, position in the stage, our index) for each block; `stage_of` has the stage of each block."""
    position, previous = 0, None
    for index, stage in enumerate(stage_of):
        position = 0 if stage != previous else position + 1
        previous = stage
        yield stage, position, index


def mindcv_shufflenet_v1(backbone: nn.Cell) -> Pairs:
    yield from numbered("stem", "first_conv.")
    for i in range(len(backbone.units)):
        yield from numbered(f"units.{i}.compress", f"features.{i}.branch_main_1.")
        yield from numbered(f"units.{i}.depthwise", f"features.{i}.branch_main_2.")
        yield from numbered(f"units.{i}.expand", f"features.{i}.branch_main_2.", 2)
    yield "head", "classifier"


def shuffle_unit(ours: str, block: nn.Cell, branch: str, shortcut: str) -> Pairs:
    """Yield the pairs of a `ShuffleUnit`; `branch` and `shortcut` are the library's names of its two sequences."""
    for j, index in enumerate((0, 3, 5)):
        yield from numbered(f"{ours}.branch.{j}", f"{branch}.", index)
    if block.shortcut is not None:
        yield from numbered(f"{ours}.shortcut.0", f"{shortcut}.")
        yield from numbered(f"{ours}.shortcut.1", f"{shortcut}.", 2)


def mindcv_shufflenet_v2(backbone: nn.Cell) -> Pairs:
    yield from numbered("stem", "first_conv.")
    for i, block in enumerate(backbone.units):
        yield from shuffle_unit(f"units.{i}", block, f"features.{i}.branch_main", f"features.{i}.branch_proj")
    yield from numbered("last", "conv_last.")
    yield "head", "classifier"


def torchvision_shufflenet_v2(backbone: nn.Cell) -> Pairs:
    yield from numbered("stem", "conv1.")
    repeats = [stage for stage, repeat in zip((2, 3, 4), backbone.stage_repeats) for _ in range(repeat)]
    for stage, position, i in stages(repeats):
        theirs = f"stage{stage}.{position}"
        yield from shuffle_unit(f"units.{i}", backbone.units[i], f"{theirs}.branch2", f"{theirs}.branch1")
    yield from numbered("last", "conv5.")
    yield "head", "fc"


def inverted_residual(
    ours: str, theirs: str, block: nn.Cell, names: Callable[[nn.Cell], Iterable[tuple[str, str]]]
) -> Pairs:
    """Yield the pairs of an `InvertedResidual`.

    Each of its layers is a convolution with a norm, or squeeze and excitation (SE), and has two parts with weights.
    `names(block)` gives the library's names of both parts for each layer; the prefix `theirs` is added.
    """
    for j, (layer, their_parts) in enumerate(zip(block.layers, names(block))):
        our_parts = ("conv", "norm") if isinstance(layer, ConvNormAct) else ("reduce", "expand")
        for our_part, their_part in zip(our_parts, their_parts):
            yield f"{ours}.layers.{j}.{our_part}", theirs + their_part


def flat_names(block: nn.Cell) -> Pairs:
    """Yield the names in a single sequence of convolutions, norms, activations and SE."""
    index = 0
    for layer in block.layers:
        if isinstance(layer, ConvNormAct):
            yield f"{index}", f"{index + 1}"
            index += 3
        else:
            yield f"{index}.conv_reduce", f"{index}.conv_expand"
            index += 1


def nested_names(block: nn.Cell) -> Pairs:
    """Yield the names in a sequence of sequences of convolution, norm and activation."""
    for j, layer in enumerate(block.layers):
        yield (f"{j}.0", f"{j}.1") if isinstance(layer, ConvNormAct) else (f"{j}.fc1", f"{j}.fc2")


def half_nested_names(block: nn.Cell) -> list[tuple[str, str]]:
    """Return `nested_names`, except that the last convolution and its norm are in no inner sequence."""
    last = len(block.layers) - 1
    return [*list(nested_names(block))[:-1], (f"{last}", f"{last + 1}")]


def timm_names(block: nn.Cell) -> Pairs:
    """Yield timm's names: convolutions are named by their function, norms are numbered."""
    convolutions = [layer for layer in block.layers if isinstance(layer, ConvNormAct)]
    names = iter(["conv_dw", "conv_pw"] if len(convolutions) == 2 else ["conv_pw", "conv_dw", "conv_pwl"])
    norm = 0
    for layer in block.layers:
        if isinstance(layer, ConvNormAct):
            norm += 1
            yield next(names), f"bn{norm}"
        else:
            yield "se.conv_reduce", "se.conv_expand"


def mindcv_mobilenet_v1(backbone: nn.Cell) -> Pairs:
    yield from numbered("stem", "features.")
    for j in range(len(backbone.layers)):
        yield from numbered(f"layers.{j}", f"features.{j // 2 + 3}.", 3 * (j % 2))
    yield "head", "classifier"


def mindcv_mobilenet_v2(backbone: nn.Cell, head: str = "classifier.1") -> Pairs:
    yield from numbered("stem", "features.")
    for i, block in enumerate(backbone.blocks):
        yield from inverted_residual(f"blocks.{i}", f"features.{i + 3}.layers.", block, flat_names)
    yield from numbered("last", "features.", len(backbone.blocks) + 3)
    yield "head", head


def mindcv_mobilenet_v3(backbone: nn.Cell) -> Pairs:
    yield from mindcv_mobilenet_v2(backbone, head="classifier.3")
    yield "widen", "classifier.0"


def mindcv_mnasnet(backbone: nn.Cell) -> Pairs:
    yield from numbered("stem", "features.")
    yield from numbered("blocks.0.layers.0", "features.", 3)
    yield from numbered("blocks.0.layers.1", "features.", 6)
    for i, block in list(enumerate(backbone.blocks))[1:]:
        yield from inverted_residual(f"blocks.{i}", f"features.{i + 7}.layers.", block, flat_names)
    yield from numbered("last", "features.", len(backbone.blocks) + 7)
    yield "head", "classifier"


def torchvision_mobilenet_v2(backbone: nn.Cell) -> Pairs:
    yield from numbered("stem", "features.0.")
    for i, block in enumerate(backbone.blocks):
        yield from inverted_residual(f"blocks.{i}", f"features.{i + 1}.conv.", block, half_nested_names)
    yield from numbered("last", f"features.{len(backbone.blocks) + 1}.")
    yield "head", "classifier.1"


def torchvision_mobilenet_v3(backbone: nn.Cell) -> Pairs:
    yield from numbered("stem", "features.0.")
    for i, block in enumerate(backbone.blocks):
        yield from inverted_residual(f"blocks.{i}", f"features.{i + 1}.block.", block, nested_names)
    yield from numbered("last", f"features.{len(backbone.blocks) + 1}.")
    yield "widen", "classifier.0"
    yield "head", "classifier.3"


def torchvision_mnasnet(backbone: nn.Cell) -> Pairs:
    yield from numbered("stem", "layers.")
    yield from numbered("blocks.0.layers.0", "layers.", 3)
    yield from numbered("blocks.0.layers.1", "layers.", 6)
    for stage, position, i in stages(block_stages(backbone)[1:]):
        block = backbone.blocks[i + 1]
        yield from inverted_residual(f"blocks.{i + 1}", f"layers.{stage + 7}.{position}.layers.", block, flat_names)
    yield from numbered("last", "layers.", len(backbone.stages) + 7)
    yield "head", "classifier.1"


def block_stages(backbone: nn.Cell) -> list[int]:
    """Return the stage of each block of a network whose `stages` are rows of (…, repeats, stride)."""
    return [stage for stage, row in enumerate(backbone.stages) for _ in range(row[-2])]


def timm_blocks(backbone: nn.Cell, stage_of: Sequence[int]) -> Pairs:
    yield from unit("stem", "conv_stem", "bn1")
    for stage, position, i in stages(stage_of):
        yield from inverted_residual(f"blocks.{i}", f"blocks.{stage}.{position}.", backbone.blocks[i], timm_names)
    yield "head", "classifier"


def timm_mobilenet_v2(backbone: nn.Cell) -> Pairs:
    yield from timm_blocks(backbone, block_stages(backbone))
    yield from unit("last", "conv_head", "bn2")


def timm_mobilenet_v3(backbone: nn.Cell) -> Pairs:
    """Yield timm's names; consecutive blocks with equal output channels at 1.0x form a stage."""
    channels = [row[2] for row in backbone.bottlenecks]
    order = list(dict.fromkeys(channels))
    yield from timm_blocks(backbone, [order.index(count) for count in channels])
    yield from unit("last", f"blocks.{len(order)}.0.conv", f"blocks.{len(order)}.0.bn1")
    yield "widen", "conv_head"


def ghost_blocks(backbone: nn.Cell) -> Pairs:
    """Yield the pairs that mindcv and timm share: all except the last convolution.

    A stage ends before and after each block with stride 2.
    """
    yield from unit("stem", "conv_stem", "bn1")
    strides = [row[-1] for row in backbone.bottlenecks]
    stage_of, stage = [], 0
    for i, stride in enumerate(strides):
        stage += int(i > 0 and 2 in (stride, strides[i - 1]))
        stage_of.append(stage)
    for stage, position, i in stages(stage_of):
        block, ours, theirs = backbone.blocks[i], f"blocks.{i}", f"blocks.{stage}.{position}"
        for part, ghost in (("expand", "ghost1"), ("project", "ghost2")):
            yield from numbered(f"{ours}.{part}.primary", f"{theirs}.{ghost}.primary_conv.")
            yield from numbered(f"{ours}.{part}.ghosts", f"{theirs}.{ghost}.cheap_operation.")
        if block.depthwise is not None:
            yield from unit(f"{ours}.depthwise", f"{theirs}.conv_dw", f"{theirs}.bn_dw")
        if block.squeeze is not None:
            yield f"{ours}.squeeze.reduce", f"{theirs}.se.conv_reduce"
            yield f"{ours}.squeeze.expand", f"{theirs}.se.conv_expand"
        if block.shortcut is not None:
            yield from numbered(f"{ours}.shortcut.0", f"{theirs}.shortcut.")
            yield from numbered(f"{ours}.shortcut.1", f"{theirs}.shortcut.", 2)
    yield "widen", "conv_head"
    yield "head", "classifier"


def mindcv_ghostnet(backbone: nn.Cell) -> Pairs:
    yield from ghost_blocks(backbone)
    yield from unit("last", "blocks.9.features.0", "blocks.9.features.1")


def timm_ghostnet(backbone: nn.Cell) -> Pairs:
    yield from ghost_blocks(backbone)
    yield from unit("last", "blocks.9.0.conv", "blocks.9.0.bn1")


class Source(NamedTuple):
    """How a library implements a network: its layer names, BatchNorm's epsilon, `model.layout` and `model.padding`."""

    names: LayerNames
    epsilon: float = 1e-5
    layout: Optional[str] = None  # None: the network has no layouts
    padding: Optional[str] = None  # None: symmetric


SOURCES = {  # network: {library: Source}
    "shufflenet_v1": {"mindcv": Source(mindcv_shufflenet_v1, padding=SAME)},
    "shufflenet_v2": {
        "mindcv": Source(mindcv_shufflenet_v2, layout="authors", padding=SAME),
        "torchvision": Source(torchvision_shufflenet_v2, layout="equal_split"),
    },
    "mobilenet_v1": {"mindcv": Source(mindcv_mobilenet_v1)},
    "mobilenet_v2": {
        "mindcv": Source(mindcv_mobilenet_v2),
        "torchvision": Source(torchvision_mobilenet_v2),
        "timm": Source(timm_mobilenet_v2),
    },
    **{
        name: {
            "mindcv": Source(mindcv_mobilenet_v3, padding=SAME),
            "torchvision": Source(torchvision_mobilenet_v3, epsilon=1e-3),
            "timm": Source(timm_mobilenet_v3),
        }
        for name in ("mobilenet_v3_small", "mobilenet_v3_large")
    },
    "mnasnet": {
        "mindcv": Source(mindcv_mnasnet, epsilon=1e-3),
        "torchvision": Source(torchvision_mnasnet),
        "timm": Source(timm_mobilenet_v2),
    },
    "ghostnet": {"mindcv": Source(mindcv_ghostnet), "timm": Source(timm_ghostnet)},
}
