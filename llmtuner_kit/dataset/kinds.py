"""Which files the kit can read, told by their names: the one list for upload and preparation."""

from __future__ import annotations

from pathlib import PurePosixPath

from llmtuner_kit.errors import DataError

# suffix -> how the file is read
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".rst": "rst",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".xlsx": "xlsx",
    ".parquet": "parquet",
}
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
ARCHIVES = {".zip": "zip", ".tar": "tar", ".tgz": "tar"}
DOCUMENTS = frozenset({"text", "markdown", "rst", "html", "pdf", "docx"})


def kind_of(name: str) -> str:
    """How a file is read: a value of KINDS, `zip` or `tar`; empty when the kit has no reader for it.

    A compression suffix is looked through: `rows.jsonl.gz` is `jsonl`, `all.tar.zst` is `tar`.
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    if not suffixes:
        return ""
    return KINDS.get(suffixes[-1]) or ARCHIVES.get(suffixes[-1], "")


def compression_of(name: str) -> str:
    """`gzip`, `zstd` or empty."""
    suffix = PurePosixPath(name).suffix.lower()
    return "gzip" if suffix == ".tgz" else COMPRESSED.get(suffix, "")


def is_hidden(name: str) -> bool:
    """Whether a path is what editors and operating systems leave behind (.DS_Store, .git/, ~$report.docx, __MACOSX)."""
    parts = [part for part in PurePosixPath(name).parts if part != ".."]
    return any(part.startswith((".", "~$")) or part == "__MACOSX" for part in parts)


def describe() -> str:
    """The readable kinds as one line for messages."""
    return (
        " ".join(KINDS)
        + ", each also as "
        + " ".join(COMPRESSED)
        + " and inside "
        + " ".join(suffix for suffix in ARCHIVES)
    )


def unsupported(names: list[str]) -> DataError:
    """The error for files of which none can be read."""
    shown = ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return DataError(
        f"The kit cannot read {shown}.",
        valid=describe(),
        fix="save the data as one of these kinds (a spreadsheet as .csv or .xlsx, chats as .jsonl)",
    )
