"""Reading the settings from YAML and the command line, and what a mistake in them is answered with."""

import re
import reprlib
from pathlib import Path

from pydantic import BaseModel, ValidationError

from src.config.schema import Config
from src.config.yaml_text import parse_yaml
from src.errors import UserError, did_you_mean


def load_config(path, overrides=()):
    """Read the YAML file at `path`, apply `section.key=value` overrides and return the resolved `Config`.

    Raises `UserError` naming the file or override, the key, its value and what is allowed.
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
        raise UserError(f"{path}: must hold sections such as `model:` with keys, not {shown(tree)}")
    return make_config(tree, overrides, source=path)


def make_config(tree, overrides=(), source="config"):
    """Return the `Config` of a nested dict with overrides applied; `source` names its origin in errors."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    overridden = set()
    for override in overrides:
        key, equals, value = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise UserError(f"{override}: an override looks like section.key=value")
        if not isinstance(tree.setdefault(section, {}), dict):
            raise UserError(f"{source}: {section}: {shown(tree[section])} must be a section with keys")
        tree[section][name] = parse_yaml(value, source=override)
        overridden.add(key)
    try:
        config = Config.model_validate(tree)
        resolve_choices(config)
        return config
    except ValidationError as error:
        message, key = describe(error.errors()[0])
    except ValueError as error:
        message, key = str(error), str(error).partition(":")[0]
    origin = "command line" if any(f"{override}.".startswith(f"{key}.") for override in overridden) else source
    raise UserError(f"{origin}: {message}")


def resolve_choices(config: Config) -> None:
    """Check the chosen network and data set, and fill in their defaults; a mistake is a `ValueError` with its key."""
    # Both tables import MindSpore, which takes seconds; the schema has answered every other mistake before.
    from src.data.datasets import resolve_data
    from src.models import resolve_model, resolve_teacher

    resolve_model(config.model)
    resolve_data(config.data)
    resolve_teacher(config.distill)


def describe(problem):
    """Return (message, dotted key) for one pydantic error."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(key, all_keys())}", key
    if kind == "value_error":
        # A check of a whole section names the key itself, at the head of its message.
        inner = str(problem["ctx"]["error"])
        if isinstance(value, (dict, BaseModel)):
            key = ".".join([*location, inner.split(":")[0]])
            return ".".join([*location, inner]), key
        return f"{key}: {inner}", key
    if kind == "literal_error":
        allowed = [choice.strip("'") for choice in re.split(r", | or ", problem["ctx"]["expected"])]
        return f"{key}: {shown(value)} is not one of {', '.join(allowed)}{did_you_mean(value, allowed)}", key
    if kind == "model_type":
        return f"{key}: {shown(value)} must be a section with keys", key
    return f"{key}: {shown(value)}: {problem['msg'][0].lower()}{problem['msg'][1:]}", key


def all_keys():
    """Return every section and every dotted key of the schema."""
    keys = []
    for section, field in Config.model_fields.items():
        keys += [section, *(f"{section}.{name}" for name in field.annotation.model_fields)]
    return keys


def shown(value):
    """Return a value for an error message, cut where it would fill the screen."""
    brief = reprlib.Repr()
    # Aliases can make a few lines of YAML a list of millions.
    brief.maxlevel, brief.maxlist, brief.maxdict, brief.maxstring, brief.maxother = 3, 20, 20, 100, 100
    text = brief.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
