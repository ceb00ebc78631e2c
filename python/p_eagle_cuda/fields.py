"""Typed reading of JSON configuration files, with one clear sentence for everything wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from p_eagle_cuda.errors import ConfigError, PEagleError

_LARGEST_INTEGER = 2**31 - 1  # sizes and ids beyond it are damage, not models


def read_json_object(file: Path, error: type[PEagleError] = ConfigError) -> dict[str, Any]:
    """Read a UTF-8 JSON file that holds one object; anything else raises `error`."""
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise error(f"{file}: not found") from None
    except OSError as reason:
        raise error(f"{file}: cannot be read ({reason.strerror})") from None
    except UnicodeDecodeError as reason:
        raise error(
            f"{file}: expected UTF-8 text, found byte {reason.object[reason.start]:#04x} "
            f"at offset {reason.start}"
        ) from None
    except json.JSONDecodeError as reason:
        raise error(
            f"{file}: expected JSON, found an error in line {reason.lineno} ({reason.msg})"
        ) from None
    except (ValueError, RecursionError) as reason:  # numbers and nesting without bound
        raise error(f"{file}: expected a configuration, found other JSON ({reason})") from None
    if not isinstance(value, dict):
        raise error(f"{file}: expected a JSON object, found {shown(value)}")
    return value


class ConfigFields:
    """Typed access to one JSON object of a configuration file.

    A `null` counts as absent, as in Hugging Face configurations. Every method raises `ConfigError`
    with one sentence that names the file, the field, what was expected and what was found.
    """

    def __init__(self, values: Mapping[str, Any], file: Path, prefix: str = "") -> None:
        self.values = values
        self.file = file
        self.prefix = prefix

    @classmethod
    def read(cls, path: str | Path) -> ConfigFields:
        """Read `path`, a `config.json` or the folder that contains it."""
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        return cls(read_json_object(file), file)

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def error(self, name: str, expected: str) -> ConfigError:
        """The error that `name` is missing, or is not what was `expected`."""
        field = f"{self.file}: field `{self.prefix}{name}`"
        if name not in self:
            return ConfigError(f"{field} is missing, expected {expected}")
        return ConfigError(f"{field} must be {expected}, found {shown(self.values[name])}")

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        """An integer from `minimum` to 2**31 - 1; required when there is no default."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.error(name, f"an integer of at least {minimum}")
        if value > _LARGEST_INTEGER:
            raise self.error(name, f"an integer of at most {_LARGEST_INTEGER}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above zero; required when there is no default."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not 0 < value <= sys.float_info.max  # compares integers of any size
        ):
            raise self.error(name, "a finite number above 0")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def string(self, name: str, default: str) -> str:
        """A string."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(name, "a string")
        return value

    def ascending(self, name: str) -> tuple[int, ...]:
        """A non-empty list of ascending integers, none below zero; `()` when absent."""
        values = self.values.get(name)
        if values is None:
            return ()
        expected = "a non-empty list of ascending integers, each at least 0"
        if not isinstance(values, list) or not values:
            raise self.error(name, expected)
        if any(not isinstance(value, int) or isinstance(value, bool) for value in values):
            raise self.error(name, expected)
        if values[0] < 0 or any(a >= b for a, b in pairwise(values)):
            raise self.error(name, expected)
        return tuple(values)

    def section(self, name: str) -> ConfigFields:
        """A nested object, empty when absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, "an object")
        return ConfigFields(value or {}, self.file, f"{self.prefix}{name}.")

    def sections(self, name: str) -> list[ConfigFields]:
        """A list of objects; required."""
        values = self.values.get(name)
        if not isinstance(values, list) or not all(isinstance(x, dict) for x in values):
            raise self.error(name, "a list of objects")
        return [
            ConfigFields(x, self.file, f"{self.prefix}{name}[{i}].") for i, x in enumerate(values)
        ]


def shown(value: object) -> str:
    """A JSON value as in the file, shortened to stay within a sentence."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
