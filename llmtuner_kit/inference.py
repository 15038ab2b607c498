"""Asking an endpoint: one answer, a stream, and how to call it from an application.

Decoder models are asked with OpenAI bodies (`messages`), encoder-decoders with `inputs`: the bodies of the real
serving images, which the local server takes too.
"""

from __future__ import annotations

import codecs
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmtuner_kit import runs
from llmtuner_kit.aws import ClientError, described, error_message, is_error
from llmtuner_kit.catalog import Family
from llmtuner_kit.errors import KitError, NotFoundError, NotReadyError, SettingsError
from llmtuner_kit.workspace import Workspace

# All but the first with what was there before.
_SERVING = ("InService", "Updating", "SystemUpdating", "RollingBack", "UpdateRollbackFailed")
BODY_LIMIT = 6_291_456  # bytes, request and response of a real-time endpoint


@dataclass(frozen=True)
class Answer:
    """One answer; token counts are None where the server does not say."""

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str = ""


@dataclass(frozen=True)
class Deployed:
    """Which endpoint of a run, and how it wants to be asked."""

    endpoint_name: str
    family: Family


def deployed(workspace: Workspace, run_name: str, endpoint_name: str = "") -> Deployed:
    """The endpoint named, else the one the run deployed."""
    run = runs.open_run(workspace, run_name)
    result = (run.section("deploy") or {}).get("result") or {}
    if not endpoint_name and not result:
        run.result("deploy")  # raises, naming the notebook to run
    return Deployed(endpoint_name or result["endpoint_name"], result.get("family", "causal"))


def user_message(instruction: str, text: str = "") -> str:
    """The user turn of a dataset row, as in training: instruction, blank line, input."""
    return f"{instruction}\n\n{text}" if text else instruction


def body(
    prompt: str | list[dict[str, str]],
    family: Family,
    *,
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    top_p: float = 1.0,
    model: str = "",
    stream: bool = False,
) -> dict[str, Any]:
    """The request body. Pure."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if family == "causal":
        made: dict[str, Any] = {
            "messages": messages,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "model": model or "tuned",
        }
        return made | {"stream": True} if stream else made
    parameters: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if temperature > 0:
        parameters |= {"do_sample": True, "temperature": temperature, "top_p": top_p}
    # More than a question goes as messages: the server writes them out with their speakers, as training did.
    made = {"inputs": messages[0]["content"] if len(messages) == 1 else messages, "parameters": parameters}
    if model:
        made["model"] = model
    return made | {"stream": True} if stream else made


def invoke(workspace: Workspace, target: Deployed, prompt: str | list[dict[str, str]], **options: Any) -> Answer:
    """One answer. Options are those of `body`. Raises NotReadyError when the endpoint does not serve yet."""
    payload = _encoded(body(prompt, target.family, **options))
    try:
        answer = workspace.aws.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=target.endpoint_name, Body=payload, ContentType="application/json", Accept="application/json"
        )
    except ClientError as error:
        raise _plain(error, target) from error
    return read_answer(json.loads(answer["Body"].read()))


def _encoded(request: Mapping[str, Any]) -> bytes:
    payload = json.dumps(request).encode()
    if len(payload) > BODY_LIMIT:
        raise SettingsError(
            f"The prompt makes a request of {len(payload):,} bytes.", valid=f"at most {BODY_LIMIT:,} bytes"
        )
    return payload


def read_answer(found: Any) -> Answer:
    """The text of an OpenAI-style or text-generation-style answer."""
    if isinstance(found, list):
        found = found[0]
    if "generated_text" in found:
        return Answer(str(found["generated_text"]))
    choice = found["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    usage = found.get("usage") or {}
    reason = choice.get("finish_reason") or ""
    return Answer(text or "", usage.get("prompt_tokens"), usage.get("completion_tokens"), reason)


def stream(workspace: Workspace, target: Deployed, prompt: str | list[dict[str, str]], **options: Any) -> Iterator[str]:
    """The answer in pieces as it is written; an encoder-decoder's in one, as the image that serves it cannot stream."""
    if target.family == "seq2seq":
        yield invoke(workspace, target, prompt, **options).text
        return
    payload = _encoded(body(prompt, target.family, stream=True, **options))
    try:
        answer = workspace.aws.client("sagemaker-runtime").invoke_endpoint_with_response_stream(
            EndpointName=target.endpoint_name, Body=payload, ContentType="application/json"
        )
        yield from pieces(event["PayloadPart"]["Bytes"] for event in answer["Body"] if "PayloadPart" in event)
    except ClientError as error:
        raise _plain(error, target) from error


def pieces(parts: Iterable[bytes]) -> Iterator[str]:
    """Text pieces of a server-sent event stream that arrives cut at any byte."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending = ""
    for part in parts:
        pending += decoder.decode(part)
        *lines, pending = pending.split("\n")
        for line in lines:
            yield from _piece(line)
    yield from _piece(pending)


def _piece(line: str) -> Iterator[str]:
    text = line.strip().removeprefix("data:").strip()
    if not text or text == "[DONE]" or not text.startswith("{"):
        return
    found = json.loads(text)
    if "error" in found:
        error = found["error"]
        raise KitError(f"The server broke off: {error.get('message', error) if isinstance(error, dict) else error}")
    if "token" in found:
        if not found["token"].get("special"):
            yield found["token"]["text"]
        return
    for choice in found.get("choices", []):
        piece = choice.get("delta", {}).get("content") if "delta" in choice else choice.get("text")
        if piece:
            yield piece


def _plain(error: ClientError, target: Deployed) -> Exception:
    """What a failed invocation means for the person who asked."""
    name = target.endpoint_name
    message = error_message(error)
    if is_error(error, "ValidationError", "ValidationException") and "not found" in message:
        return NotReadyError(
            f"Endpoint {name!r} does not answer: it does not exist, or is not in service yet.",
            fix="look at its status in 06_deploy; run 06_deploy when it was deleted",
        )
    if is_error(error, "ModelError"):
        original = error.response.get("OriginalMessage") or message
        return KitError(
            f"The model's server answered {error.response.get('OriginalStatusCode', '')}: {_inner(original)}",
            fix="ask for fewer tokens; a plain invocation may take 60 s, a decoder model's stream longer"
            if "timed out" in original
            else "",
        )
    if is_error(error, "ModelStreamError", "InternalStreamFailure"):
        return KitError(f"The answer broke off: {message}", fix="ask again; for fewer tokens when it took too long")
    if is_error(error, "ServiceUnavailable", "ModelNotReadyException"):
        return NotReadyError(f"Endpoint {name!r} has no instance free: {message}", fix="try again in a moment")
    return error


def _inner(text: str) -> str:
    """The message inside a server's JSON error, or the text itself."""
    try:
        found = json.loads(text)
    except ValueError:
        return text[:600]
    error = found.get("error", found) if isinstance(found, dict) else found
    return str(error.get("message", error))[:600] if isinstance(error, dict) else str(error)[:600]


def client_examples(workspace: Workspace, target: Deployed, prompt: str = "Hello") -> dict[str, str]:
    """How to call the endpoint from an application: boto3, the OpenAI client, the AWS CLI."""
    request = body(prompt, target.family, max_new_tokens=100)
    region, name = workspace.aws.region, target.endpoint_name
    local = workspace.aws.endpoint_url("sagemaker-runtime")
    examples = {
        "boto3": (
            "import json, boto3\n\n"
            f'client = boto3.client("sagemaker-runtime", region_name="{region}")\n'
            f"request = {json.dumps(request, indent=4)}\n"
            "answer = client.invoke_endpoint(\n"
            f'    EndpointName="{name}", ContentType="application/json", Body=json.dumps(request)\n)\n'
            'print(json.loads(answer["Body"].read()))\n'
        ),
        "AWS CLI": (
            # Versions 1 and 2 of the CLI take a body from a file alike.
            f"echo {shlex.quote(json.dumps(request))} > request.json\n"
            f"aws sagemaker-runtime invoke-endpoint --region {region} --endpoint-name {name} \\\n"
            "    --content-type application/json --body fileb://request.json answer.json && cat answer.json\n"
        ),
    }
    if target.family == "causal":
        examples["OpenAI client"] = (
            "from openai import OpenAI\nfrom sagemaker.core.token_generator import generate_token\n\n"
            f'client = OpenAI(base_url="{local}/endpoints/{name}/openai/v1", api_key=generate_token(region="{region}"))\n'
            f'print(client.chat.completions.create(model="", messages=[{{"role": "user", "content": {json.dumps(prompt)}}}]))\n'
        )
    return examples


def require_serving(workspace: Workspace, endpoint_name: str) -> None:
    """Raises NotFoundError or NotReadyError unless the endpoint is in service."""
    found = described(workspace.aws.client("sagemaker").describe_endpoint, EndpointName=endpoint_name)
    if found is None:
        raise NotFoundError(f"There is no endpoint {endpoint_name!r}.", fix="run 06_deploy")
    if found["EndpointStatus"] not in _SERVING:
        raise NotReadyError(
            f"Endpoint {endpoint_name!r} is {found['EndpointStatus']}.",
            fix="run 08_cleanup, then 06_deploy again"
            if found["EndpointStatus"] == "Failed"
            else "wait in 06_deploy until it is InService",
        )
