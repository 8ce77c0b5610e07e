"""Parse YAML. Duplicate keys are errors, and 1e-4 is a number."""

import re
from typing import Any, Union

import yaml

from src.errors import UserError

INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class MisleadingNumber(yaml.constructor.ConstructorError):
    """A number whose value in YAML 1.1 is not what it looks like."""


class Loader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys, NUL and misleading numbers.

    As in YAML 1.2, 1e-4 is a number and 2026-11-24 is a text.
    """

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        text = node.value.replace("_", "").lstrip("+-")
        is_octal = text.isdigit() and text[0] == "0" and len(text) > 1
        value = (self.construct_yaml_float if node.tag == FLOAT else self.construct_yaml_int)(node)
        if is_octal or ":" in text:
            kind = "an octal" if is_octal else "a base-60"
            decimal = int(node.value.replace("_", "")) if is_octal else value
            plain = f"{decimal} (or {value}, the octal value)" if is_octal else decimal
            problem = f"{node.value} is {kind} number in YAML; write {plain}, or put a text in quotes"
            raise MisleadingNumber(None, None, problem, node.start_mark)
        return value

    def construct_scalar(self, node: Union[yaml.ScalarNode, yaml.MappingNode]) -> Any:
        value = super().construct_scalar(node)
        if "\0" in value:  # No path can have it.
            raise yaml.constructor.ConstructorError(None, None, "the text has the character NUL", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a string", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(FLOAT, re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}
for tag in (INT, FLOAT):
    Loader.add_constructor(tag, Loader.construct_number)


def parse_yaml(text: str, source: object) -> Any:
    """Return the value of the YAML `text`; `source` names its origin in errors."""
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise UserError(f"{source}: is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        fault = "" if isinstance(error, MisleadingNumber) else "is not valid YAML: "
        raise UserError(f"{source}: {fault}{getattr(error, 'problem', None) or error}{where}") from None
    except (AttributeError, LookupError):
        # PyYAML raises these errors for values such as !!timestamp x, !!bool x or an empty !!int.
        raise UserError(f"{source}: is not valid YAML: a value does not fit its tag") from None
