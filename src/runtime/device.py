"""Choosing the device, the execution mode and the seed before anything is built."""

import mindspore as ms

from src.errors import UserError

TARGETS = {"ascend": "Ascend", "gpu": "GPU", "cpu": "CPU"}  # as MindSpore spells them, the preferred first


def use_device(runtime, seed=0):
    """Set MindSpore's device, mode and seed; `runtime` is the config's section. An absent device is a `UserError`."""
    available = [name for name, target in TARGETS.items() if target == "CPU" or ms.hal.is_available(target)]
    name = available[0] if runtime.device == "auto" else runtime.device
    if name not in available:
        raise UserError(f"runtime.device: {name} is not available here; available: {', '.join(available)}")
    # Once MindSpore has computed anything, it takes no device, not even the one that it is on.
    if ms.get_context("device_target") != TARGETS[name]:
        ms.set_device(TARGETS[name])
    ms.set_context(mode=ms.GRAPH_MODE if runtime.mode == "graph" else ms.PYNATIVE_MODE)
    ms.set_seed(seed)
