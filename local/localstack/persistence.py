"""Placeholder of the file store; see launcher."""


def install() -> None:
    """Nothing yet."""
