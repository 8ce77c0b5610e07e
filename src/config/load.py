"""Read the settings from YAML and the command line, and report errors in them."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from src.config.schema import Config
from src.config.yaml_text import parse_yaml
from src.errors import UserError, did_you_mean

COMMAND_LINE = "command line"


class Problem(NamedTuple):
    """An error in a config."""

    message: str
    key: str  # dotted
    is_choice: bool  # `resolve_choices` found it


def load_config(path: Union[str, Path], overrides: Sequence[str] = ()) -> Config:
    """Read the YAML file at `path`, apply `section.key=value` overrides and return the resolved `Config`.

    An error is a `UserError`. It names the file or the override, the key, the value found and the values allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    tree = parse_yaml(text, source=path)
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must contain sections with settings, such as `model:` (found {shown(tree)})")
    return make_config(tree, overrides, source=path)


def make_config(tree: Mapping[str, Any], overrides: Sequence[str] = (), source: object = "config") -> Config:
    """Return the `Config` of a nested dict, with overrides applied; `source` names its origin in errors."""
    own = tree
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    overridden = set()
    for override in overrides:
        key, equals, value = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise UserError(f"{override}: is not an override; write section.key=value")
        if not isinstance(tree.setdefault(section, {}), dict):
            raise UserError(f"{source}: {section}: {shown(tree[section])} must be a section with settings")
        tree[section][name] = parse_yaml(value, source=override)
        overridden.add(key)
    found = attempt(tree)
    if isinstance(found, Config):
        return found
    if any(inside(found.key, key) or inside(key, found.key) for key in overridden):
        origin: object = COMMAND_LINE
    elif not overridden or source == COMMAND_LINE or attempt(own, found.is_choice) == found:
        origin = source
    else:  # A setting of the file does not fit a setting of the command line.
        origin = f"{COMMAND_LINE} and {source}"
    raise UserError(f"{origin}: {found.message}")


def inside(key: str, section: str) -> bool:
    """Return whether a dotted key is `section`, or inside of it."""
    return f"{key}.".startswith(f"{section}.")


def attempt(tree: Mapping[str, Any], choices: bool = True) -> Union[Config, Problem]:
    """Return the `Config` of a nested dict, or its first `Problem`; without `choices`, only the schema counts."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        return Problem(*describe(error.errors()[0]), is_choice=False)
    if choices:
        try:
            resolve_choices(config)
        except ValueError as error:
            return Problem(str(error), str(error).partition(":")[0], is_choice=True)
    return config


def resolve_choices(config: Config) -> None:
    """Check the chosen network and data set, and fill in their defaults.

    An error is a `ValueError` whose message begins with the key.
    """
    # Both modules import MindSpore, which takes seconds. The schema has already reported all other errors.
    from src.data.datasets import resolve_data
    from src.models import resolve_model, resolve_teacher

    resolve_model(config.model)
    resolve_data(config.data)
    resolve_teacher(config.distill)


def describe(problem: ErrorDetails) -> tuple[str, str]:
    """Return (message, dotted key) for one pydantic error."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(key, all_keys())}", key
    if kind == "value_error":
        # If a check of a whole section fails, its message begins with the key.
        inner = str(problem["ctx"]["error"])
        if isinstance(value, (dict, BaseModel)):
            key = ".".join([*location, inner.split(":")[0]])
            return ".".join([*location, inner]), key
        return f"{key}: {inner}", key
    if kind == "literal_error":
        allowed = [choice.strip("'") for choice in re.split(r", | or ", problem["ctx"]["expected"])]
        return f"{key}: {shown(value)} is not one of {', '.join(allowed)}{did_you_mean(value, allowed)}", key
    if kind == "string_type" and isinstance(value, bool):
        return f"{key}: must be a text (found {value}: YAML reads yes, no, on and off so); put it in quotes", key
    if kind == "model_type":
        return f"{key}: {shown(value)} must be a section with settings", key
    return f"{key}: {shown(value)} {problem['msg'].replace('Input should', 'must', 1)}", key


def all_keys() -> list[str]:
    """Return every section and every dotted key of the schema."""
    keys = []
    for section, field in Config.model_fields.items():
        settings: Any = field.annotation  # the class of the section
        keys += [section, *(f"{section}.{name}" for name in settings.model_fields)]
    return keys


def shown(value: object) -> str:
    """Return a value as text for an error message; a long text is truncated to 60 characters."""
    brief = reprlib.Repr()
    # The limits are needed, because YAML aliases can describe a list of millions of values in a few lines.
    brief.maxlevel, brief.maxlist, brief.maxdict, brief.maxstring, brief.maxother = 3, 20, 20, 100, 100
    text = brief.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
