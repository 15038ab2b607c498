"""How tables and lists of documents are written down: as Markdown, which models read and write best."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table with its first row as header; empty where there is nothing in any cell."""
    flat = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    flat = [row for row in flat if any(row)]
    if not flat:
        return ""
    width = max(len(row) for row in flat)
    header, *body = [row + [""] * (width - len(row)) for row in flat]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * width, *body))


def joined(blocks: Sequence[str]) -> str:
    """Blocks with a blank line between them, but not between the items of a list."""
    text = ""
    for block in blocks:
        close = text and is_item(block) and is_item(text[text.rfind("\n\n") + 2 if "\n\n" in text else 0 :])
        text += ("\n" if close else "\n\n" if text else "") + block
    return text


def is_item(block: str) -> bool:
    """Whether a block is an item of a list: `- bolt`, `2. turn`."""
    marker, _, rest = block.lstrip().partition(" ")
    return bool(rest) and (marker == "-" or (marker[-1:] in (".", ")") and marker[:-1].isdecimal()))
