"""Names are checked once, and nothing of a user lies outside the user's prefix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtuner_kit import paths
from llmtuner_kit.errors import SettingsError


@pytest.mark.parametrize("name", ["a", "A-b-1", "x" * 63])
def test_sagemaker_names_pass(name: str) -> None:
    assert paths.check_name(name, "job_name") == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a_b", "a b", "x" * 64, "a/../b", "ä"])
def test_names_sagemaker_refuses_are_refused_with_the_field(name: str) -> None:
    with pytest.raises(SettingsError, match="job_name"):
        paths.check_name(name, "job_name")


@pytest.mark.parametrize("label", ["", "A", "a/b", "..", "a_b", "-a", "x" * 64, "*", "${aws:username}"])
def test_labels_that_could_leave_their_segment_are_refused(label: str) -> None:
    with pytest.raises(SettingsError, match="user_id"):
        paths.check_label(label, "user_id")


@pytest.mark.parametrize("bucket", ["ab", "Abc", "a.b.c", "xn--abc", "-abc", "abc-s3alias", "a_b"])
def test_bucket_names_s3_refuses_are_refused(bucket: str) -> None:
    with pytest.raises(SettingsError, match="bucket"):
        paths.check_bucket(bucket)


@given(st.text(max_size=200))
def test_slug_is_empty_or_a_valid_label(text: str) -> None:
    made = paths.slug(text)
    assert made == "" or paths.check_label(made, "x") == made


@given(st.from_regex(r"[a-z0-9]{1,80}", fullmatch=True), st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True))
def test_fitted_names_are_valid_and_keep_their_tail(head: str, tail: str) -> None:
    made = paths.fit_name(head, tail)
    assert paths.check_name(made, "x").endswith(tail)


def test_layout_is_the_documented_one() -> None:
    mine = paths.UserPaths("bucket", "me")
    assert mine.uploads("d") == "users/me/uploads/d/"
    assert mine.dataset("d", "v") == "users/me/datasets/d/v/"
    assert mine.model_archive("job") == "users/me/models/job/output/model.tar.gz"
    assert mine.checkpoints("job") == "users/me/checkpoints/job/"
    assert mine.run_record("r") == "users/me/runs/r/run.json"
    assert mine.uri(mine.models) == "s3://bucket/users/me/models"


@pytest.mark.parametrize(
    ("uri", "own"),
    [
        ("s3://bucket/users/me/x", True),
        ("s3://bucket/users/me2/x", False),
        ("s3://bucket/users/other/x", False),
        ("s3://other/users/me/x", False),
        ("s3://bucket/users/me/../other/x", False),
    ],
)
def test_owns_knows_the_border_of_the_prefix(uri: str, own: bool) -> None:
    assert paths.UserPaths("bucket", "me").owns(uri) is own


def test_split_uri_refuses_what_is_not_s3() -> None:
    assert paths.split_uri("s3://b/k/l") == ("b", "k/l")
    with pytest.raises(SettingsError, match="https"):
        paths.split_uri("https://b/k")
