"""The Hugging Face Hub, as far as the kit itself asks it: what a model is, and its small files. Jobs fetch weights.

The only importer of huggingface_hub. A token comes from HF_TOKEN or from `hf auth login`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtuner_kit.errors import KitError, NotFoundError

# A model is looked up beside a form, where somebody waits.
_SECONDS = 10


@dataclass(frozen=True)
class HubModel:
    """A repository at one commit: `files` by name with their bytes; `gated` where a token is needed."""

    name: str
    commit: str
    licence: str
    gated: bool
    files: Mapping[str, int]


def look_up(name: str, revision: str = "") -> HubModel:
    """What the Hub says of a model at a branch, tag or commit. Raises NotFoundError where it does not answer."""
    from huggingface_hub import HfApi

    with _plainly(name):
        info = HfApi().model_info(name, revision=revision or None, files_metadata=True, timeout=_SECONDS)
    return HubModel(
        name=name,
        commit=str(info.sha),
        licence=str(getattr(info.card_data, "license", None) or "as its page says"),
        gated=bool(info.gated or info.private),
        files={item.rfilename: int(item.size or 0) for item in info.siblings or []},
    )


def fetch(name: str, commit: str, patterns: Sequence[str], folder: Path) -> None:
    """Files of a model into a folder; those that are there already are not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        """No bar: a few small files."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})

    with _plainly(name):
        snapshot_download(name, revision=commit, allow_patterns=list(patterns), local_dir=folder, tqdm_class=Silent)


@contextmanager
def _plainly(name: str) -> Iterator[None]:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise KitError(
            f"{name} is gated on the Hub.",
            fix=f"accept its licence at https://huggingface.co/{name}, and set HF_TOKEN to a token of that account",
        ) from error
    except RevisionNotFoundError as error:
        raise NotFoundError(
            f"{name} has no such revision on the Hub.", valid="a branch, a tag or a commit behind the @"
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"{name} is not on the Hub, or is private.",
            fix="look for misspelling; for a private model set HF_TOKEN to a token that may read it",
        ) from error
    except Exception as error:  # its HTTP library's own errors, which is another one in other versions
        raise NotFoundError(
            f"The Hub cannot be asked for {name}: {(str(error).splitlines() or [type(error).__name__])[0]}",
            valid="without a network: smollm2-135m-instruct, tiny-llama, tiny-t5, or a folder on this machine",
            fix="connect to the network, or choose a model that ships offline",
        ) from error
