"""The user's own wording for rows: templates with `{column}` for what a row has there, `{{` and `}}` for braces."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmtuner_kit.errors import DataError
from llmtuner_kit.settings import PrepareSettings

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")
PARTS = ("instruction", "input", "output", "system")
OF_DOCUMENTS = ("heading", "path", "part", "file")
"""What templates can name in documents: the heading of a section, those above it, its number, and the file."""


@dataclass(frozen=True)
class Templates:
    """One template a part of a row; empty: the part is taken from the data as it is."""

    instruction: str = ""
    input: str = ""
    output: str = ""
    system: str = ""

    @classmethod
    def of(cls, settings: PrepareSettings) -> Templates:
        return cls(**{part: getattr(settings, f"{part}_template") for part in PARTS})

    def given(self) -> dict[str, str]:
        """The templates that are set, by their part."""
        return {part: text for part in PARTS if (text := getattr(self, part))}

    def names(self) -> set[str]:
        """The columns that any of them names."""
        return {name for text in self.given().values() for name in names(text)}


def names(template: str) -> tuple[str, ...]:
    """The columns a template names, in order, each once."""
    return tuple(dict.fromkeys(match[1].strip() for match in _PLACE.finditer(template) if match[1]))


def fill(template: str, row: Mapping[str, Any], text_of: Callable[[Mapping[str, Any], str], str]) -> str:
    """The template with every `{column}` replaced; empty when it names columns and the row has nothing in any of them.

    So an answer that is missing in the data stays missing, whatever words the template puts around it.
    """
    found = {name: text_of(row, name) for name in names(template)}
    if found and not any(text.strip() for text in found.values()):
        return ""
    return _PLACE.sub(lambda match: found[match[1].strip()] if match[1] else match[0][0], template)


def missing(columns: Collection[str], templates: Templates) -> dict[str, str]:
    """The columns that templates name and are not among these -> the setting that names it, the first one."""
    found: dict[str, str] = {}
    for part, template in templates.given().items():
        for name in names(template):
            if name not in columns:
                found.setdefault(name, f"{part}_template")
    return found


def unknown(source: str, columns: Sequence[str], name: str, setting: str) -> DataError:
    """The error for a column that a template names and no row of any file has."""
    return DataError(
        f"{setting} names {{{name}}}, and {source} has no such column.",
        valid=", ".join(f"{{{column}}}" for column in columns) or "text without {…}",
        fix=f"change {setting}; for braces that are meant as they are write {{{{ and }}}}",
    )
