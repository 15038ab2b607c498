"""How a base model is named: as in the catalogue, as on the Hugging Face Hub, by a prefix in S3, or by a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmtuner_kit import catalog
from llmtuner_kit.errors import SettingsError

Kind = Literal["catalogue", "hub", "s3", "folder"]

# By these a model's tokens are counted.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
OTHERS = "ORGANISATION/MODEL as on the Hugging Face Hub, s3://BUCKET/PREFIX/, or a folder such as ./MODEL"
# A branch, tag or commit may follow the Hub's name.
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/")


@dataclass(frozen=True)
class Reference:
    """A base model as it was asked for.

    Attributes:
        text: what stands in settings: the catalogue's short name, the Hub's name (with its revision), the prefix with
            its slash, the folder's whole path.
        name: the same without the revision.
        revision: of the Hub: branch, tag or commit; empty: its newest.
    """

    kind: Kind
    text: str
    name: str
    revision: str = ""


def parse(text: str) -> Reference:
    """What kind of name it is; whether there is such a model is not asked. Raises SettingsError for no name at all."""
    if not text:
        raise SettingsError("No base model is named.", valid=OTHERS, fix="name one, or choose one of the list")
    if text.startswith("s3://"):
        uri = text.rstrip("/") + "/"
        if not _S3.match(uri):
            raise SettingsError(f"{text!r} is no prefix in S3.", valid=OTHERS)
        return Reference("s3", uri, uri)
    if text.startswith(("/", "./", "../", "~")):
        folder = str(Path(text).expanduser().absolute())
        return Reference("folder", folder, folder)
    try:
        name = catalog.base_model(text).model_id
    except SettingsError as error:
        found = _HUB.fullmatch(text)
        if found is None:
            raise SettingsError(error.problem, valid=f"{error.valid}; or {OTHERS}", fix=error.fix) from error
        return Reference("hub", text, found["name"], found["revision"] or "")
    return Reference("catalogue", name, name)
