"""What the arithmetic of src/cost/plan.py knows about devices; this module imports neither MindSpore nor NumPy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """The peaks of a device: operations per second, bytes per second to and from memory, bytes of memory."""

    operations: float
    traffic: float
    memory: float


# From the vendors' data sheets, with the operations per second of half precision.
DEVICES = {
    "ascend910": Device(256e12, 1.2e12, 32e9),
    "a100": Device(312e12, 1.555e12, 40e9),
    "v100": Device(125e12, 0.9e12, 32e9),
}
# Small convolutions and element-wise operations reach only these shares of the peaks.
COMPUTE_SHARE, MEMORY_SHARE = 0.3, 0.6
LINK = 12.5e9  # bytes per second between devices: 100 Gbit/s
