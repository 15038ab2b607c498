"""Requests in the bodies of the real servers; streams put together however they are cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtuner_kit import evaluation, inference
from llmtuner_kit.aws import ClientError
from llmtuner_kit.errors import KitError, NotReadyError, SettingsError
from llmtuner_kit.faces import endings
from llmtuner_kit.inference import Deployed
from llmtuner_kit.settings import InvokeSettings
from llmtuner_kit.workspace import Workspace

TEXT = "Grüße, 世界! 🙂\nZweite Zeile: data: [DONE]?"


def openai_stream(text: str) -> bytes:
    lines = [{"choices": [{"delta": {"role": "assistant"}}]}]
    lines += [{"choices": [{"delta": {"content": piece}}]} for piece in text]
    return "".join(f"data: {json.dumps(item, ensure_ascii=False)}\n\n" for item in lines).encode() + b"data: [DONE]\n\n"


@given(st.lists(st.integers(1, 40), max_size=60))
def test_stream_cut_at_any_byte_gives_the_same_text(sizes: list[int]) -> None:
    whole = openai_stream(TEXT)

    def parts() -> Iterator[bytes]:
        at = 0
        for size in sizes:
            yield whole[at : at + size]
            at += size
        yield whole[at:]

    assert "".join(inference.pieces(parts())) == TEXT


def test_token_stream_leaves_special_tokens_out() -> None:
    lines = [{"token": {"text": "Hi"}}, {"token": {"text": "</s>", "special": True}, "generated_text": "Hi"}]
    stream = "".join(f"data:{json.dumps(item)}\n\n" for item in lines).encode()
    assert list(inference.pieces([stream])) == ["Hi"]


def test_error_inside_a_stream_is_raised_with_its_message() -> None:
    broken = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: {"error": {"message": "out of memory"}}\n\n'
    pieces = inference.pieces([broken])
    assert next(pieces) == "a"
    with pytest.raises(KitError, match="out of memory"):
        next(pieces)


def test_a_stream_that_the_service_ends_is_an_error_with_its_words() -> None:
    told = {
        "Error": {"Code": "ModelStreamError", "Message": "Your model primary did not complete in the allotted time."}
    }

    def parts() -> Iterator[dict[str, Any]]:
        yield {"PayloadPart": {"Bytes": openai_stream("half an ")}}
        raise ClientError(told, "InvokeEndpointWithResponseStream")

    runtime = SimpleNamespace(invoke_endpoint_with_response_stream=lambda **_: {"Body": parts()})
    workspace = cast(Workspace, SimpleNamespace(aws=SimpleNamespace(client=lambda _: runtime)))
    pieces = inference.stream(workspace, inference.Deployed("x", "causal"), "hello")
    assert next(pieces)
    with pytest.raises(KitError, match="The answer broke off: Your model primary did not complete"):
        list(pieces)


def asking(**calls: Any) -> Workspace:
    """A workspace whose runtime has these calls only."""
    return cast(Workspace, SimpleNamespace(aws=SimpleNamespace(client=lambda _: SimpleNamespace(**calls))))


def test_an_encoder_decoder_is_asked_without_a_stream_which_its_image_refuses() -> None:
    def answered(**request: Any) -> dict[str, Any]:
        asked = json.loads(request["Body"])
        return {"Body": BytesIO(json.dumps([{"generated_text": f"stream {asked.get('stream', False)}"}]).encode())}

    workspace = asking(invoke_endpoint=answered)
    assert list(inference.stream(workspace, inference.Deployed("x", "seq2seq"), "hello")) == ["stream False"]


def test_an_answer_that_took_too_long_is_told_with_what_helps() -> None:
    told = "Your invocation timed out while waiting for a response from container primary."
    late = ClientError(
        {"Error": {"Code": "ModelError", "Message": told}, "OriginalStatusCode": 0, "OriginalMessage": told},  # type: ignore[typeddict-unknown-key]
        "InvokeEndpoint",
    )

    def fails(**_: Any) -> None:
        raise late

    with pytest.raises(KitError, match="timed out") as caught:
        inference.invoke(asking(invoke_endpoint=fails), inference.Deployed("x", "causal"), "hello")
    assert caught.value.fix.startswith("ask for fewer tokens")


def test_decoder_models_get_messages_and_encoder_decoders_get_inputs() -> None:
    chat = inference.body("Hello", "causal", max_new_tokens=7, model="base", stream=True)
    assert chat["messages"] == [{"role": "user", "content": "Hello"}]
    assert (chat["max_tokens"], chat["model"], chat["stream"], chat["temperature"]) == (7, "base", True, 0.0)
    plain = inference.body("Hello", "seq2seq", max_new_tokens=7)
    assert plain == {"inputs": "Hello", "parameters": {"max_new_tokens": 7}}
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    assert inference.body(talk, "seq2seq")["inputs"] == talk


def test_request_over_the_limit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(SettingsError, match="bytes"):
        inference._encoded(inference.body("x" * inference.BODY_LIMIT, "causal"))


def test_a_held_out_question_is_asked_with_all_that_stood_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    seen: list[Any] = []
    monkeypatch.setattr(evaluation, "test_rows", lambda *_: [{"messages": talk}])
    monkeypatch.setattr(inference, "deployed", lambda *_: Deployed("e", "causal"))
    monkeypatch.setattr(inference, "require_serving", lambda *_: None)
    monkeypatch.setattr(inference, "stream", lambda _, __, prompt, **___: seen.append(prompt) or iter("ab"))
    workspace: Any = None
    own, foreign = InvokeSettings(prompt="Why?"), InvokeSettings(prompt="Why?", endpoint_name="another")
    for settings, told in (
        (InvokeSettings(), "user"),
        (own, "Why? (after the dataset's system message)"),
        (foreign, "Why?"),
    ):
        pieces, asked = endings.answer(workspace, settings)
        assert [*pieces, asked] == ["a", "b", told]
    assert seen == [talk[:2], [talk[0], {"role": "user", "content": "Why?"}], "Why?"]


@pytest.mark.parametrize(
    ("firsts", "expected"),
    [
        ([("system", "Be kind."), ("system", "Be kind.")], "Be kind."),
        ([("system", "Be kind."), ("system", "Be brief.")], ""),
        ([("system", "Be kind."), ("user", "Hello")], ""),
        ([("user", "Hello"), ("user", "Hello")], ""),
        ([("system", "Be kind."), None], ""),
        ([None, None], ""),
        ([], ""),
    ],
)
def test_a_system_message_is_the_datasets_where_all_rows_have_it(
    monkeypatch: pytest.MonkeyPatch, firsts: list[tuple[str, str] | None], expected: str
) -> None:
    rows = [
        {"messages": [{"role": first[0], "content": first[1]}]} if first else {"instruction": "a", "output": "b"}
        for first in firsts
    ]
    monkeypatch.setattr(evaluation, "test_rows", lambda *_: rows)
    workspace: Any = None
    assert evaluation.system_message(workspace, "run") == expected


def test_answers_of_both_styles_are_read() -> None:
    assert inference.read_answer([{"generated_text": "a"}]).text == "a"
    found = inference.read_answer(
        {
            "choices": [{"message": {"content": "b"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1},
        }
    )
    assert found == inference.Answer("b", 3, 1, "stop")


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        ("InService", ""), ("Updating", ""), ("SystemUpdating", ""), ("RollingBack", ""),
        ("Creating", "wait in 06_deploy"), ("Failed", "run 08_cleanup"),
    ],
)  # fmt: skip
def test_an_endpoint_under_maintenance_still_serves(status: str, fix: str) -> None:
    client = SimpleNamespace(describe_endpoint=lambda **_: {"EndpointStatus": status})
    workspace = cast(Workspace, SimpleNamespace(aws=SimpleNamespace(client=lambda _: client)))
    if not fix:
        inference.require_serving(workspace, "lamp")
    else:
        with pytest.raises(NotReadyError, match=f"(?s)'lamp' is {status}.*Next: {fix}"):
            inference.require_serving(workspace, "lamp")
