"""A workspace is a bucket and a prefix, and knows what is not its own."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from llmtuner_kit.errors import AccessError
from llmtuner_kit.settings import StartSettings
from llmtuner_kit.workspace import Workspace, open_workspace


def test_empty_settings_mean_the_kits_bucket_and_the_login_name(cloud: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "Ada.Example")
    opened = open_workspace(StartSettings())
    assert opened.bucket == "llmtuner-000000000000-us-east-1"
    assert opened.user_id == "ada-example"
    assert opened.paths.root == "users/ada-example/"


def test_a_container_whose_user_has_no_name_works_as_me(cloud: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert open_workspace(StartSettings()).user_id == "me"


def test_foreign_uri_is_refused_with_the_own_prefix(workspace: Workspace) -> None:
    own = workspace.paths.uri(workspace.paths.uploads("d"))
    assert workspace.require_own(own) == own
    with pytest.raises(AccessError, match=workspace.user_id):
        workspace.require_own(f"s3://{workspace.bucket}/users/somebody-else/uploads/d/")
