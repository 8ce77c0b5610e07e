"""The learning rate schedules against their formulas."""

import math

import numpy as np
import pytest

from src.config.load import make_config
from src.errors import UserError
from src.training.schedule import learning_rates

EPOCHS, STEPS, PEAK = 10, 6, 0.4


def rates_of(schedule, steps=STEPS, ranks=1, train=None, **optimizer):
    tree = {
        "schedule": schedule,
        "train": {"epochs": EPOCHS, **(train or {})},
        "optimizer": {"lr": PEAK, **optimizer},
    }
    return learning_rates(make_config(tree), steps, ranks)


# Learning rate / peak; p is the fraction of the run after the warm-up, e the number of epochs after the warm-up.
SMOOTH = [
    ({"name": "cosine"}, lambda p, e: 0.5 * (1 + math.cos(math.pi * p))),
    ({"name": "cosine", "end_lr": 0.1}, lambda p, e: 0.25 + 0.75 * math.cos(math.pi * p / 2) ** 2),
    ({"name": "linear"}, lambda p, e: 1 - p),
    ({"name": "linear", "end_lr": 0.1}, lambda p, e: 1 - 0.75 * p),
    ({"name": "constant"}, lambda p, e: 1.0),
    ({"name": "polynomial"}, lambda p, e: (1 - p) * (1 - p)),
    ({"name": "polynomial", "power": 0.5, "end_lr": 0.2}, lambda p, e: 0.5 + 0.5 * math.sqrt(1 - p)),
    ({"name": "exponential", "gamma": 0.97, "decay_epochs": 2.4}, lambda p, e: math.exp(math.log(0.97) * e / 2.4)),
    ({"name": "exponential", "gamma": 0.5}, lambda p, e: 2**-e),
]


@pytest.mark.parametrize(("settings", "formula"), SMOOTH, ids=lambda value: str(value) if type(value) is dict else "")
@pytest.mark.parametrize("warmup", [0, 2, 0.5, 10])
def test_smooth_schedule_follows_its_formula_after_the_warmup(settings, formula, warmup):
    rates = rates_of({**settings, "warmup_epochs": warmup})
    assert rates.dtype == np.float32
    assert len(rates) == EPOCHS * STEPS
    rising = warmup * STEPS
    for step, rate in enumerate(rates):
        if step < rising:
            assert rate == pytest.approx(PEAK * (step + 1) / rising)
        else:
            expected = formula((step - rising) / (EPOCHS * STEPS - rising), (step - rising) / STEPS)
            assert rate == pytest.approx(PEAK * expected, abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "falls"),
    [
        ({"name": "step", "step_epochs": 3}, {18: 0.1, 36: 0.01, 54: 0.001}),
        ({"name": "step", "step_epochs": 2.4, "gamma": 0.97}, {15: 0.97, 29: 0.97**2, 44: 0.97**3, 58: 0.97**4}),
        ({"name": "step", "step_epochs": 20}, {}),
        ({"name": "multistep", "milestones": [3, 6.5, 30], "gamma": 0.5}, {18: 0.5, 39: 0.25}),
    ],
    ids=str,
)
@pytest.mark.parametrize("warmup", [0, 1])
def test_schedule_changes_at_these_steps_only(settings, falls, warmup):
    expected, factor = [], 1.0
    for step in range(EPOCHS * STEPS):
        factor = falls.get(step, factor)
        expected.append(PEAK * ((step + 1) / STEPS if step < warmup * STEPS else factor))
    np.testing.assert_allclose(rates_of({**settings, "warmup_epochs": warmup}), expected, rtol=1e-6)


def test_step_epochs_that_floats_cannot_express_change_at_the_right_steps():
    rates = rates_of({"name": "step", "step_epochs": 0.3, "gamma": 0.5}, steps=10)
    np.testing.assert_allclose(rates, [PEAK * 0.5 ** (step // 3) for step in range(100)], rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_one_cycle_rises_and_falls_along_cosines(steps):
    total, rise = EPOCHS * steps, 0.25
    rates = rates_of({"name": "one_cycle", "rise": rise, "initial_divisor": 10, "final_divisor": 1000}, steps)
    first, last = PEAK / 10, PEAK / 10 / 1000
    for step, rate in enumerate(rates):
        # Counted from 1, step rise * total has the peak, and the last step has the lowest learning rate.
        if step <= rise * total - 1:
            share, begin, end = step / (rise * total - 1), first, PEAK
        else:
            share, begin, end = (step - (rise * total - 1)) / (total - 1 - (rise * total - 1)), PEAK, last
        assert rate == pytest.approx(begin + (end - begin) * (1 - math.cos(math.pi * share)) / 2, rel=1e-5)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_one_cycle_of_few_steps_is_finite_and_within_its_bounds(epochs):
    rates = rates_of({"name": "one_cycle"}, steps=1, train={"epochs": epochs})
    assert rates.max() <= np.float32(PEAK)
    assert rates.min() >= np.float32(PEAK / 25 / 1e4)


def test_rates_scale_with_the_images_of_an_update():
    plain = rates_of({"name": "cosine", "warmup_epochs": 1, "end_lr": 0.01})
    scaled = rates_of(
        {"name": "cosine", "warmup_epochs": 1, "end_lr": 0.01},
        ranks=4,
        train={"batch_size": 96, "accumulate": 2},
        lr_batch=256,
    )
    np.testing.assert_allclose(scaled, plain * 3, rtol=1e-6)
    same = rates_of({"name": "cosine", "warmup_epochs": 1, "end_lr": 0.01}, ranks=4, train={"batch_size": 96})
    np.testing.assert_array_equal(same, plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cosin"}, "schedule.name: 'cosin' is not one of cosine, linear, .*; did you mean cosine?"),
        ({"name": "step"}, "schedule.step_epochs: must be given with schedule.name=step"),
        ({"name": "multistep"}, "schedule.milestones: must be given with schedule.name=multistep"),
        ({"name": "exponential"}, "schedule.gamma: must be given with schedule.name=exponential"),
        ({"name": "multistep", "milestones": []}, "schedule.milestones: \\[\\] must be epochs above 0"),
        (
            {"name": "multistep", "milestones": [6, 3]},
            "schedule.milestones: .* must be epochs above 0 in ascending order",
        ),
        (
            {"name": "constant", "end_lr": 0.1},
            r"schedule.end_lr: is used with schedule.name=cosine, linear, polynomial only",
        ),
        (
            {"name": "cosine", "gamma": 0.1},
            r"schedule.gamma: is used with schedule.name=step, multistep, exponential only",
        ),
        ({"name": "cosine", "end_lr": 0.5}, "schedule.end_lr: 0.5 must be at most optimizer.lr, 0.4"),
        ({"name": "one_cycle", "warmup_epochs": 1}, "schedule.warmup_epochs: 1.0 is not used by one_cycle"),
        ({"name": "one_cycle", "rise": 1.0}, "schedule.rise: 1.0 must be less than 1"),
        ({"name": "step", "step_epochs": 0}, "schedule.step_epochs: 0"),
    ],
    ids=str,
)
def test_invalid_schedule_settings_are_errors(settings, message):
    with pytest.raises(UserError, match=message):
        rates_of(settings)
