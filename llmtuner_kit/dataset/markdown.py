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
    """Blocks with a blank line between them, but not between the items of one list."""
    text, last = "", ""
    for block in blocks:
        one, two = _marker(last), _marker(block)
        close = one and two and (one == two or last.startswith(" ") or block.startswith(" "))
        text += ("\n" if close else "\n\n" if text else "") + block
        last = block
    return text


def _marker(block: str) -> str:
    """What kind of list a block is an item of: `-` as `- bolt`, `1` as `2. turn`; empty for other text."""
    marker, _, rest = block.lstrip().partition(" ")
    if rest and marker[-1:] in (".", ")") and marker[:-1].isdecimal():
        return "1"
    return "-" if rest and marker == "-" else ""
