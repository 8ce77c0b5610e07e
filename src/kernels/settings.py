"""The settings of the operators: settings.h says which numbers an operator takes, and in which order."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEADER = Path(__file__).with_name("settings.h")
COMMENT = re.compile(r"//[^\n]*")
STRUCT = re.compile(r"struct (\w+) \{(.*?)\};", re.DOTALL)
MEMBERS = re.compile(r"(\w+) ([\w, ]+);")
ENUMERATION = re.compile(r"enum Activation \{(.*?)\};", re.DOTALL)


@functools.cache
def header() -> str:
    """Return the text of settings.h without comments."""
    return COMMENT.sub("", HEADER.read_text("utf-8"))


@functools.cache
def structs() -> dict[str, dict[str, str]]:
    """Return the types of the members of each struct: {struct: {member: type}}, in the order of settings.h."""
    return {
        struct: {name.strip(): kind for kind, names in MEMBERS.findall(body) for name in names.split(",")}
        for struct, body in STRUCT.findall(header())
    }


@functools.cache
def activation_numbers() -> dict[str, int]:
    """Return the number of each activation, by its name in settings.h."""
    found = ENUMERATION.search(header())
    names = found.group(1).split(",") if found else []
    return {name.strip(): number for number, name in enumerate(names)}


def numbers(struct: str, values: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the `values` of a struct's members as the operator expects them; raise a `ValueError` if they do not fit.

    The value of a member that is a struct is again a mapping.
    """
    members = structs()[struct]
    if values.keys() != members.keys():
        raise ValueError(f"{struct}: other members than in {HEADER.name} (found {[*values]}, expected {[*members]})")
    result: tuple[float, ...] = ()
    for name, kind in members.items():
        result += (float(values[name]),) if kind == "float" else numbers(kind, values[name])
    return result
