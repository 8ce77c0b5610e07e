"""The shallow networks of the tests have every kind of layer and of block of the whole networks."""

import pytest
from mindspore import nn

from src.config.load import make_config
from src.models import NETWORKS, create_model

# Attributes that decide what a Cell computes, besides its weights. Numbers of channels are left out.
ATTRIBUTES = ("kernel_size", "stride", "pad_mode", "padding", "has_bias", "residual", "surplus", "interleaved")


def kinds(name, settings):
    """Return the kind of each Cell of a network: its class, its settings, and the classes of the Cells in it."""
    config = make_config({"model": {"name": name, **settings}})
    backbone = create_model(config.model, config.data, 5).backbone
    lists = {key for key, cell in backbone.name_cells().items() if isinstance(cell, nn.SequentialCell)}  # of all blocks
    found = set()
    for path, cell in backbone.cells_and_names():
        settings = [str(getattr(cell, key, None)) for key in ATTRIBUTES]
        if isinstance(cell, nn.Conv2d):
            settings.append("grouped" if cell.group > 1 else "dense")
            settings.append("depthwise" if cell.group == cell.in_channels else "")
        parts = () if path in lists else tuple((key, type(part)) for key, part in cell.name_cells().items())
        found.add((type(cell), *settings, parts))
    return found


CASES = [(name, {}) for name in NETWORKS]
CASES += [(name, {"padding": "same"}) for name in ("shufflenet_v1", "shufflenet_v2", "mobilenet_v3_small")]
CASES += [("shufflenet_v2", {"layout": "equal_split"})]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_shallow_network_has_every_kind_of_layer_and_block(name, settings, request):
    whole = kinds(name, settings)
    request.getfixturevalue("shallow")
    assert whole - kinds(name, settings) == set()
