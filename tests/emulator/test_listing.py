"""Pages: what comes or goes between two of them leaves nothing out."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import pytest
from llmtuner_local.emulator.errors import ServiceError
from llmtuner_local.emulator.operations import listing

Document = dict[str, Any]


def cut(found: list[Document], token: str = "", *, descending: bool) -> tuple[list[str], str]:
    """The names on a page of two, and the token of the next."""
    params = {"MaxResults": 2} | ({"NextToken": token} if token else {})
    shown, token = listing.cut(list(found), params, itemgetter("at"), itemgetter("name"), descending=descending)
    return [item["name"] for item in shown], token


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("moments", [(1, 2, 3, 4, 5), (1, 1, 1, 1, 1), (1, 2, 2, 2, 3)])
def test_the_rest_comes_although_the_last_one_shown_was_deleted(moments: tuple[int, ...], descending: bool) -> None:
    found: list[Document] = [{"name": name, "at": at} for name, at in zip("abcde", moments, strict=True)]
    seen, token = cut(found, descending=descending)
    left = [item for item in found if item["name"] != seen[-1]]
    while token:
        names, token = cut(left, token, descending=descending)
        seen += names
    assert set(seen) == set("abcde")


@pytest.mark.parametrize("token", ["", "!", "bm8=", "WzFd", "WyJ4IiwgImdvbmUiXQ=="])  # the last: ["x", "gone"]
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(ServiceError, match="Invalid NextToken"):
        listing.cut(
            [{"name": "a", "at": 1}], {"NextToken": token}, itemgetter("at"), itemgetter("name"), descending=True
        )
