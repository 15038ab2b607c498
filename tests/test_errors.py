"""Errors are readable, keep their parts, and cross process borders."""

from __future__ import annotations

import pickle

from llmtuner_kit import errors
from llmtuner_kit.errors import DataError, KitError, SettingsError


def test_text_says_problem_valid_values_and_next_step_in_that_order() -> None:
    error = KitError("epochs is -1.", valid="above 0", fix="set epochs")
    assert str(error).split("\n") == ["epochs is -1.", "Valid: above 0", "Next: set epochs"]


def test_parts_that_are_not_given_leave_no_line() -> None:
    assert str(KitError("It broke.")) == "It broke."


def test_notebook_shows_one_block_named_after_the_class() -> None:
    lines = DataError("line 3 is not JSON.", fix="repair it")._render_traceback_()
    assert lines == ["DataError: line 3 is not JSON.", "  Next: repair it"]


def test_a_notebook_breaks_no_word_of_a_long_line() -> None:
    said = "s3://bucket/" + "folder/" * 20 + " is not there, " + "and this goes on " * 10
    lines = DataError(said, valid="a, " * 60)._render_traceback_()
    assert " ".join("\n".join(lines).split()) == " ".join(f"DataError: {said} Valid: {'a, ' * 60}".split())
    assert [len(line) > errors.WIDTH for line in lines].count(True) == 1  # the address, which is one word
    assert all(line.startswith("  ") for line in lines[1:])


def test_errors_survive_pickling_with_their_parts() -> None:
    error = pickle.loads(pickle.dumps(DataError("bad", valid="good", fix="mend")))
    assert (type(error), error.problem, error.valid, error.fix) == (DataError, "bad", "good", "mend")


def test_settings_error_lists_every_problem() -> None:
    error = SettingsError.of(["a: no", "b: no"], fix="change them")
    assert error.problem == "2 settings need a change:\n- a: no\n- b: no"
    assert SettingsError.of(["a: no"]).problem.startswith("1 setting needs")
