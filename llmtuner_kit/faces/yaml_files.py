"""YAML as people write it by hand: a key that is there twice is a mistake, where PyYAML takes the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llmtuner_kit.errors import SettingsError


def read(path: Path) -> Any:
    """What a file holds, None where it is empty. Raises SettingsError with the place of what is wrong."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Strict)  # noqa: S506 (it is a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
