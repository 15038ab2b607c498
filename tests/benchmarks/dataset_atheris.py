"""Coverage-guided fuzzing of every reader with atheris, in an environment of its own beside the kit's.

    python -m venv /tmp/atheris && /tmp/atheris/bin/pip install atheris
    PYTHONPATH="$PWD:$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')" \\
        /tmp/atheris/bin/python tests/benchmarks/dataset_atheris.py -max_total_time=120 [CORPUS_FOLDER]

The first byte of an input chooses the kind of file and its wrapping, the rest is the file. Whatever the bytes, each
record must come out as a row or with a reason of the catalogue; anything else is a finding. The options are libFuzzer's.
Findings become examples of tests/dataset/test_fuzz.py.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["llmtuner_kit.dataset", "csv", "json", "zipfile", "tarfile", "docx", "openpyxl"]
):
    from llmtuner_kit.dataset import defects, expand
    from llmtuner_kit.dataset.chunks import Plan, Source
    from llmtuner_kit.dataset.drafts import drafts_of
    from llmtuner_kit.errors import DataError
    from llmtuner_kit.settings import PrepareSettings

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".md", ".rst", ".html", ".pdf", ".docx", ".xlsx", ".parquet")
SETTINGS = PrepareSettings(mask_personal_data=True)
FOLDER = Path(tempfile.mkdtemp())


def measure(texts: list[str]) -> list[int]:
    """Tokens, near enough for cutting passages."""
    return [len(text) // 4 + 1 for text in texts]


def named(choice: int, data: bytes) -> tuple[str, bytes]:
    """A file's name and content for one input."""
    suffix, how = KINDS[choice % len(KINDS)], choice // len(KINDS) % 4
    if how == 1:
        return f"f{suffix}.gz", gzip.compress(data, 1)
    if how == 2:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(f"f{suffix}", data)
        return "f.zip", packed.getvalue()
    if how == 3:
        return ("f.zip", "f.tar", "f.tar.zst", f"f{suffix}.gz")[choice % 4], data
    return f"f{suffix}", data


def one_input(data: bytes) -> None:
    """Read one file whole; raises whatever is a finding."""
    if not data:
        return
    name, content = named(data[0], data[1:])
    path = FOLDER / "f"
    path.write_bytes(content)
    try:
        for chunk in Plan(expand.expand([Source(name, path, len(content), "x")], FOLDER / "expanded"), SETTINGS):
            for draft in drafts_of(chunk, SETTINGS, measure, None, {}):
                if draft.row is not None:
                    assert json.loads(draft.line) == draft.row
                else:
                    assert draft.problem is not None
                    assert draft.problem[0] in defects.DEFECTS, draft.problem
    except DataError as refused:
        if not ("column" in str(refused) or "conversations" in str(refused)):
            raise


def main() -> None:
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
