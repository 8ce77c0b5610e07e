"""How train.py was started: alone, or as one of several processes (ranks) that train together."""

import os
from typing import Optional

MSRUN, MPIRUN, RANK_TABLE = "msrun", "mpirun", "RANK_TABLE_FILE"
# Environment variables with the number of ranks, and what sets them. PMI_SIZE is set by MPICH and Intel MPI.
SIZES = {"OMPI_COMM_WORLD_SIZE": MPIRUN, "PMI_SIZE": MPIRUN, "RANK_SIZE": RANK_TABLE}
RANK_TABLES = ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH")


def launcher() -> Optional[str]:
    """Return what started this process as one of several: MSRUN, MPIRUN or RANK_TABLE; None: it trains alone."""
    if "MS_ROLE" in os.environ:
        return MSRUN
    for variable, name in SIZES.items():
        if os.environ.get(variable, "1") != "1":
            return name
    return RANK_TABLE if any(os.environ.get(variable) for variable in RANK_TABLES) else None
