"""The learning rate of every step of a run, a pure function of the config and the step's number."""

import numpy as np


def learning_rates(config, steps_per_epoch, ranks=1):
    """Return the learning rate of every update of the run, float32 (epochs * steps_per_epoch).

    steps_per_epoch: updates an epoch, which are fewer than its batches where gradients are accumulated. With
    `optimizer.lr_batch`, all rates are multiplied by the images of an update, on all `ranks` devices, over that number:
    Goyal et al., Accurate, Large Minibatch SGD, section 2.1.
    """
    settings, peak = config.schedule, config.optimizer.lr
    steps = np.arange(config.train.epochs * steps_per_epoch)
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), len(steps))
    after = np.maximum(steps - warmup, 0)
    progress = after / max(len(steps) - warmup, 1)
    epochs = (steps + 1e-6) / steps_per_epoch  # from the run's beginning; the margin is for 2.4 epochs of 5 steps
    if settings.name == "cosine":
        rates = settings.end_lr + (peak - settings.end_lr) * falling_cosine(progress)
    elif settings.name == "linear":
        rates = settings.end_lr + (peak - settings.end_lr) * (1 - progress)
    elif settings.name == "polynomial":
        rates = settings.end_lr + (peak - settings.end_lr) * (1 - progress) ** settings.power
    elif settings.name == "constant":
        rates = np.full(len(steps), peak)
    elif settings.name == "step":
        rates = peak * settings.gamma ** (epochs // settings.step_epochs)
    elif settings.name == "multistep":
        rates = peak * settings.gamma ** np.searchsorted(settings.milestones, epochs, side="right")
    elif settings.name == "exponential":
        rates = peak * settings.gamma ** (after / steps_per_epoch / settings.decay_epochs)
    else:
        rates = one_cycle(settings, peak, steps)
    rates = np.where(steps < warmup, peak * (steps + 1) / max(warmup, 1), rates)
    return np.float32(rates * batch_factor(config, ranks))


def falling_cosine(progress):
    """Return half a period of the cosine, from 1 where `progress` is 0 to 0 where it is 1."""
    return 0.5 * (1 + np.cos(np.pi * progress))


def one_cycle(settings, peak, steps):
    """Return a rise to the peak and a longer fall, both along a cosine; the first and last steps have the extremes.

    Smith and Topin, Super-Convergence, as PyTorch's OneCycleLR with annealing by cosine has it.
    """
    first, last_step = peak / settings.initial_divisor, max(len(steps) - 1, 1)
    last = first / settings.final_divisor
    top = np.clip(settings.rise * len(steps) - 1, 0, last_step)
    rising = peak + (first - peak) * falling_cosine(np.minimum(steps / max(top, 1e-9), 1))
    falling = last + (peak - last) * falling_cosine(np.maximum(steps - top, 0) / max(last_step - top, 1e-9))
    return np.where(steps < top, rising, falling)


def batch_factor(config, ranks):
    """Return what the learning rates are multiplied by for the images of one update."""
    train, meant = config.train, config.optimizer.lr_batch
    return 1.0 if meant is None else train.batch_size * train.accumulate * ranks / meant
