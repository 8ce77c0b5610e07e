"""Selection of the device, the execution mode and the seed, before any network is built."""

import mindspore as ms

from src.config.schema import RuntimeConfig
from src.errors import UserError

TARGETS = {"ascend": "Ascend", "gpu": "GPU", "cpu": "CPU"}  # MindSpore's names; `auto` takes the first available device


def use_device(runtime: RuntimeConfig, seed: int = 0) -> None:
    """Set MindSpore's device, execution mode and seed; `runtime` is this section of the config.

    A device that is not available is a `UserError`.
    """
    available = [name for name, target in TARGETS.items() if target == "CPU" or ms.hal.is_available(target)]
    name = available[0] if runtime.device == "auto" else runtime.device
    if name not in available:
        raise UserError(f"runtime.device: {name} is not available here (available: {', '.join(available)})")
    # After its first computation, MindSpore refuses `set_device`, even for the device that it already uses.
    if ms.get_context("device_target") != TARGETS[name]:
        ms.set_device(TARGETS[name])
    set_mode_and_seed(runtime, seed)


def keep_device(runtime: RuntimeConfig, seed: int) -> None:
    """Set mode and seed as `use_device` does; another device than the current device is a `UserError`.

    It is for processes that have joined other processes already, because they cannot change the device any more.
    """
    used = ms.get_context("device_target")
    if runtime.device != "auto" and TARGETS[runtime.device] != used:
        raise UserError(
            f"runtime.device: the run was started with another device (found {used}, expected {runtime.device}); under "
            f"msrun, add runtime.device={runtime.device} to --resume"
        )
    set_mode_and_seed(runtime, seed)


def set_mode_and_seed(runtime: RuntimeConfig, seed: int) -> None:
    """Set MindSpore's execution mode and seed."""
    ms.set_context(mode=ms.GRAPH_MODE if runtime.mode == "graph" else ms.PYNATIVE_MODE)
    ms.set_seed(seed)
