"""The settings of the operators, as Python reads them from the C++ header."""

import pytest

from src.kernels import operators
from src.kernels.operators import NormSettings
from src.kernels.settings import activation_numbers, numbers, structs


def test_settings_have_the_order_of_the_header():
    assert [*structs()["NormSettings"]] == ["epsilon", "momentum", "activation", "present", "batch_statistics"]
    assert structs()["DepthwiseSettings"]["after"] == "NormSettings"
    assert numbers("DenseSettings", {"padding": 2, "stride": 1}) == (1.0, 2.0)
    norm = operators.norm_values(NormSettings(1e-3, 0.9, "ReLU6", True))
    values = {"before": norm, "after": operators.norm_values(None), "shuffle_groups": 3, "keep": False, "stride": 2}
    assert numbers("DepthwiseSettings", values) == (2, 0, 3, 1e-3, 0.9, 2, 1, 1, 0, 0, 0, 0, 0)


def test_activations_have_the_numbers_of_the_header():
    assert activation_numbers() == {"kNone": 0, "kRelu": 1, "kRelu6": 2, "kHardSwish": 3}
    assert set(operators.ACTIVATIONS.values()) == set(activation_numbers())


@pytest.mark.parametrize("values", [{"stride": 1}, {"stride": 1, "padding": 0, "dilation": 1}, {}])
def test_other_members_than_in_the_header_are_an_error(values):
    with pytest.raises(ValueError, match="DenseSettings: other members than in settings.h"):
        numbers("DenseSettings", values)
