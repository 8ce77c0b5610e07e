"""The check that the ranks of a run have the same settings and data, before they train together."""

import hashlib
import json
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from src.config.schema import Config
from src.data.samples import Samples
from src.errors import UserError
from src.runtime.parallel import Ranks

# The settings that may differ between ranks: they are about one machine, or only the first rank uses them.
FREE_KEYS = ("run.dir", "data.root", "data.workers", "data.download")


def refuse_unlike(values: Mapping[str, Any], ranks: Ranks) -> None:
    """Raise a `UserError` on all ranks if the `values`, by name, are not the same on all ranks; all ranks call it.

    JSON must be able to store the values. The error names the first name with another value than on the first rank.
    """
    if ranks.count == 1:
        return
    own = {name: digest(value) for name, value in values.items()}
    first: dict[str, str] = json.loads(ranks.from_first(lambda: json.dumps(own).encode()))
    names = list(first)
    # The number of the first name that differs. This rank may also have names that are not in `names`.
    differing = next((i for i, name in enumerate(names) if own.get(name) != first[name]), len(names))
    found = np.zeros(ranks.count, np.int64)
    found[ranks.rank] = differing if len(own) == len(names) or differing < len(names) else len(names) + 1
    gathered = ranks.sum(found)
    unlike = [rank for rank, number in enumerate(gathered.tolist()) if number != len(names)]
    if not unlike:
        return
    number = gathered[unlike[0]]
    name = names[number] if number < len(names) else "settings"
    here = f" (this is rank {ranks.rank}, found {reprlib.repr(values[name])})" if name in values else ""
    raise UserError(
        f"{name}: differs between the ranks 0 and {unlike[0]} of msrun{here}; start every rank with the same code, "
        "command and data"
    )


def data_of(splits: Mapping[str, Samples]) -> dict[str, Any]:
    """Return what the ranks must share of their data: class names, and the number and the labels of the images."""
    values: dict[str, Any] = {}
    for split, samples in splits.items():
        values[f"classes of the {split} images"] = samples.classes
        values[f"number of {split} images"] = len(samples)
        values[f"labels of the {split} images"] = hashlib.sha256(samples.labels.tobytes()).hexdigest()
    return values


def digest(value: Any) -> str:
    """Return the SHA-256 of a value, which JSON can store, in hexadecimal."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def settings_of(config: Config) -> dict[str, Any]:
    """Return the settings that all ranks must share, by dotted key."""
    tree = config.model_dump()
    settings = {f"{section}.{name}": value for section, values in tree.items() for name, value in values.items()}
    return {key: value for key, value in settings.items() if key not in FREE_KEYS}
