"""What is wrong with a setting, in our words, with the name as its giver wrote it."""

from collections.abc import Mapping
from typing import Any

from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from serving.sources import PREFIX


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def spelled(name: str, origins: Mapping[str, str], config: object) -> str:
    """`origins`: by name, of what was given, from where; `config`: the file that some is from."""
    match origins.get(name):
        case "environment":
            return f"{PREFIX}{name.upper()}"
        case "file":
            return f"{name} in {config}"
    return flag(name)


def reason(error: Any, name: str, given: object, field: FieldInfo) -> str:
    """One of pydantic's errors; `name` as spelled."""
    match error["type"]:
        case "missing":
            return f"{name} is missing: {field.description}"
        case "too_short":
            return f"{name} is empty; it must name one or more"
        case "literal_error":
            return f"{name} is {given}; it must be {error['ctx']['expected']}"
        case "value_error":
            return f"{name} {error['ctx']['error']}"
    span = _range(field)
    return f"{name} is {given}; it must be {span}" if span else f"{name}: {error['msg']}"


def _range(field: FieldInfo) -> str:
    """ "from 1 to 256", or nothing."""
    low = [rule.ge for rule in field.metadata if isinstance(rule, Ge)]
    high = [rule.le for rule in field.metadata if isinstance(rule, Le)]
    return f"from {low[0]} to {high[0]}" if low and high else ""
