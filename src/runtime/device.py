"""Selection of the device, the execution mode and the seed, before any network is built."""

import os
from typing import Any, Callable, Optional, TypeVar

import mindspore as ms

from src.config.schema import RuntimeConfig, listed
from src.errors import UserError
from src.launch import MPIRUN, MSRUN, RANK_TABLE

TARGETS = {"ascend": "Ascend", "gpu": "GPU", "cpu": "CPU"}  # MindSpore's names; `auto` takes the first available device
NOT_ON_CPU = ("device_id", "memory_limit", "jit_level")  # settings that MindSpore ignores on a CPU
# For each way to start several ranks: the devices on which MindSpore supports it, and the variable of the environment
# with the number of the rank's device. msrun needs no variable, because MindSpore gives each rank a device.
LAUNCHERS: dict[str, tuple[tuple[str, ...], Optional[str]]] = {
    MSRUN: (("Ascend", "GPU", "CPU"), None),
    MPIRUN: (("Ascend", "GPU"), "OMPI_COMM_WORLD_LOCAL_RANK"),
    RANK_TABLE: (("Ascend",), "DEVICE_ID"),
}
ADVICE = "start the ranks with: msrun --worker_num=N --local_worker_num=N --join=True train.py …"

Function = TypeVar("Function", bound=Callable[..., Any])


def use_device(runtime: RuntimeConfig, seed: int = 0, started_by: Optional[str] = None) -> None:
    """Set MindSpore's device, execution mode and seed; `runtime` is this section of the config.

    `started_by` is the result of `launcher`, for a process that joins other ranks afterwards. A device that is not
    available, a setting that the device does not have, or ranks that MindSpore cannot connect are a `UserError`.
    """
    available = [name for name in TARGETS if getattr(ms.device_context, name).is_available()]
    name = available[0] if runtime.device == "auto" else runtime.device
    if name not in available:
        raise UserError(f"runtime.device: {name} is not available here (available: {', '.join(available)})")
    number = runtime.device_id
    if started_by is not None:
        refuse_number(runtime)
        number = device_of_rank(started_by, TARGETS[name])
    check_settings(runtime, name)
    if number is not None:
        count = getattr(ms.device_context, name).device_count()
        if number >= count:
            raise UserError(f"runtime.device_id: {number} is not available here (found {count} devices, from 0)")
        ms.set_device(TARGETS[name], number)
    # After its first computation, MindSpore refuses `set_device`, even for the device that it already uses.
    elif ms.get_context("device_target") != TARGETS[name]:
        ms.set_device(TARGETS[name])
    if runtime.memory_limit is not None:
        ms.runtime.set_memory(max_size=runtime.memory_limit)
    if runtime.deterministic and name != "cpu":
        ms.set_deterministic(True)
    set_mode_and_seed(runtime, seed)


def keep_device(runtime: RuntimeConfig, seed: int, started: RuntimeConfig) -> None:
    """Set mode and seed as `use_device` does, in a process that called it with the settings `started`.

    It is for processes that have joined other processes already, because they cannot change the device any more.
    Another device or other settings of the device are a `UserError`.
    """
    used = ms.get_context("device_target")
    found = {"device": used, "memory_limit": started.memory_limit, "deterministic": started.deterministic}
    for key, value in found.items():
        expected = getattr(runtime, key)
        if expected == value or (key == "device" and TARGETS.get(expected, used) == used):
            continue
        given = "null" if expected is None else expected
        raise UserError(
            f"runtime.{key}: the run was started with another {key} (found {value}, expected {expected}); with several "
            f"ranks, add runtime.{key}={given} to --resume"
        )
    refuse_number(runtime)
    check_settings(runtime, next(name for name, target in TARGETS.items() if target == used))
    set_mode_and_seed(runtime, seed)


def device_of_rank(started_by: str, target: str) -> Optional[int]:
    """Return the number of this rank's device, or None if MindSpore chooses it."""
    targets, variable = LAUNCHERS[started_by]
    if target not in targets:
        found = f"found {target}, expected {listed(targets)}"
        raise UserError(
            f"{started_by}: MindSpore does not connect ranks of this device in this way ({found}); {ADVICE}"
        )
    if variable is None:
        return None
    number = os.environ.get(variable, "")
    if not number.isdecimal():
        found = f"found {number!r}, expected the number of the rank's device"
        raise UserError(f"{started_by}: the environment variable {variable} is missing or wrong ({found}); {ADVICE}")
    return int(number)


def refuse_number(runtime: RuntimeConfig) -> None:
    """Raise a `UserError` if the settings give all ranks the same device."""
    if runtime.device_id is not None:
        raise UserError(
            f"runtime.device_id: each of several ranks has another device (found {runtime.device_id}, expected null); "
            "use runtime.device_id=null"
        )


def check_settings(runtime: RuntimeConfig, name: str) -> None:
    """Raise a `UserError` for a setting that has no effect on the device with this `name`."""
    for key in NOT_ON_CPU if name == "cpu" else ():
        value = getattr(runtime, key)
        if value is not None:
            raise UserError(f"runtime.{key}: has no effect on a CPU (found {value}, expected null); leave it out")
    if runtime.jit_level == "O2" and name != "ascend":
        raise UserError(f"runtime.jit_level: O2 is supported on Ascend only (found {name}); use O0 or O1")


def set_mode_and_seed(runtime: RuntimeConfig, seed: int) -> None:
    """Set MindSpore's execution mode, level of compilation and seed."""
    ms.set_context(mode=ms.GRAPH_MODE if runtime.mode == "graph" else ms.PYNATIVE_MODE)
    if runtime.jit_level is not None:
        ms.set_context(jit_config={"jit_level": runtime.jit_level})
    ms.set_seed(seed)


def compile_graph(function: Function) -> Function:
    """Return the function as a compiled graph, at the level that `use_device` has set (`runtime.jit_level`)."""
    level = ms.context.get_jit_config().get("jit_level")
    if level is None:
        return ms.jit(function)
    # `ms.jit` does not read the level of the context. Its backend ms_backend has the levels O0 and O1.
    return ms.jit(function, backend="GE") if level == "O2" else ms.jit(function, backend="ms_backend", jit_level=level)
