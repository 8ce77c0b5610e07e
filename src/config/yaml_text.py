"""Parse YAML. Duplicate keys are errors, and 1e-4 is a number."""

import re
from typing import Any, Union

import yaml

from src.errors import UserError


class Loader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys and NUL, and reads 1e-4 as a number, as YAML 1.2 does."""

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


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, source: object) -> Any:
    """Return the value of the YAML `text`; `source` names its origin in errors."""
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise UserError(f"{source}: is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UserError(f"{source}: is not valid YAML: {getattr(error, 'problem', None) or error}{where}") from None
    except (AttributeError, LookupError):
        # PyYAML raises these errors for values such as !!timestamp x, !!bool x or an empty !!int.
        raise UserError(f"{source}: is not valid YAML: a value does not fit its tag") from None
