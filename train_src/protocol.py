"""The JSON bodies an endpoint takes and gives, with no server in sight: serve.py and inference.py share it.

    {"inputs": "text" | [messages] | ["text", ...], "parameters": {...}, "stream": false}   -> [{"generated_text": ...}]
    {"messages": [...]} or {"prompt": "..."} with OpenAI's names                            -> OpenAI's reply

`inputs` text is a question: it goes through the chat template, as the rows of training did. OpenAI's `prompt` is text
as it stands. `"model": "base"` asks the model as it was before the fine-tune; the name of an adapter that was loaded
asks that one.
"""

import json
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

from generation import Generator, Piece, RequestError
from sampling import Sampling

PARAMETERS = (
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
    "stop",
    "do_sample",
    "return_full_text",
    "details",
)
# What OpenAI has beside them and would change the answer, with the values that ask for nothing.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
LARGEST_ANSWER = 8192
Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Request:
    """A parsed body. `style` is `inputs`, `chat` or `completion` and decides the form of the reply."""

    style: str
    prompts: list[Prompt]
    sampling: Sampling
    stream: bool = False
    return_full_text: bool = False
    details: bool = False
    include_usage: bool = False
    model: str = "tuned"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))


def parse_json(raw: bytes | bytearray | str) -> Any:
    """The body as a JSON value. Raises RequestError for anything else."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from error


def parse(body: Any) -> Request:
    """Check a decoded JSON body. Raises RequestError that names the field and what it may be."""
    if not isinstance(body, dict):
        raise RequestError('the body must be a JSON object with "inputs", "messages" or "prompt"')
    if "inputs" in body:
        request = _parse_inputs(body)
    elif "messages" in body:
        request = _parse_openai(body, "chat", [_messages(body["messages"])])
    elif "prompt" in body:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        request = _parse_openai(body, "completion", [_text(prompt, "prompt") for prompt in prompts])
    else:
        raise RequestError('the body needs "inputs", "messages" or "prompt"')
    model = body.get("model") or "tuned"
    if not isinstance(model, str):
        raise RequestError(f"model is {model!r}, it must be a name")
    request = replace(request, model=model, stream=_flag(body, "stream"))
    if not request.prompts:
        raise RequestError("there is no prompt in the list")
    if request.stream and len(request.prompts) > 1:
        raise RequestError("a stream answers one prompt at a time")
    return request


def reply(request: Request, answers: list[list[Piece]]) -> Any:
    """The JSON value for finished answers, one list of pieces for each prompt."""
    if request.style == "inputs":
        return [_inputs_reply(request, prompt, pieces) for prompt, pieces in zip(request.prompts, answers, strict=True)]
    choices = []
    for index, pieces in enumerate(answers):
        text = "".join(piece.text for piece in pieces)
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if request.style == "chat" else {"text": text}
        )
        choices.append({"index": index, **content, "logprobs": None, "finish_reason": pieces[-1].finish_reason})
    return {**_openai_head(request, stream=False), "choices": choices, "usage": _usage(answers)}


class EventStream:
    """Server-sent events of a streamed answer."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._text = ""  # so far, for the style that repeats it at the end
        self._is_first = True

    def event(self, piece: Piece) -> str:
        """The event of one piece."""
        if self.request.style == "inputs":
            self._text += piece.text
            return _event(_inputs_event(piece, self._text))
        if self.request.style == "chat":
            delta: dict[str, Any] = {"content": piece.text}
            if self._is_first:
                delta["role"] = "assistant"
            content: dict[str, Any] = {"delta": delta}
        else:
            content = {"text": piece.text}
        self._is_first = False
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": piece.finish_reason}
        return _event({**_openai_head(self.request, stream=True), "choices": [choice]})

    def end(self, last: Piece) -> str:
        """What follows the last piece: the usage, where it was asked for, and the mark of the end."""
        usage = ""
        if self.request.include_usage:
            usage = _event({**_openai_head(self.request, stream=True), "choices": [], "usage": _usage([[last]])})
        return usage + "data: [DONE]\n\n"


def error(problem: BaseException, status: int) -> dict[str, Any]:
    """The JSON of a refused request, in OpenAI's form."""
    kinds = {
        400: "invalid_request_error",
        404: "not_found",
        409: "conflict",
        413: "request_too_large",
        429: "overloaded",
        503: "unavailable",
    }
    message = str(problem).encode(errors="backslashreplace").decode()  # it may quote half a character of the request
    return {"error": {"message": message, "type": kinds.get(status, "server_error"), "code": status}}


def encode_prompts(generator: Generator, request: Request) -> list[list[int]]:
    """Token ids of each prompt. Raises RequestError when the chat template refuses one."""
    try:
        return [generator.prompt_ids(prompt) for prompt in request.prompts]
    except ValueError as refusal:
        raise RequestError(str(refusal)) from refusal


def _parse_inputs(body: dict[str, Any]) -> Request:
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError('"parameters" must be an object')
    unknown = sorted(set(parameters) - set(PARAMETERS))
    if unknown:
        raise RequestError(f"unknown parameters {', '.join(unknown)}; known: {', '.join(PARAMETERS)}")
    inputs = body["inputs"]
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict):
        prompts: list[Prompt] = [_messages(inputs)]
    else:
        texts = inputs if isinstance(inputs, list) else [inputs]
        prompts = [[{"role": "user", "content": _text(text, "inputs")}] for text in texts]
    # As transformers has it: sampling only where it is asked for.
    does_sample = _flag(parameters, "do_sample") or (
        "do_sample" not in parameters and parameters.get("temperature") is not None
    )
    default = 1.0 if does_sample else 0.0
    temperature = _number(parameters, "temperature", default, 0.0, 10.0) if does_sample else 0.0
    return Request(
        "inputs",
        prompts,
        _sampling(parameters, temperature, "max_new_tokens", 256),
        return_full_text=_flag(parameters, "return_full_text"),
        details=_flag(parameters, "details"),
    )


def _parse_openai(body: dict[str, Any], style: str, prompts: list[Prompt]) -> Request:
    if body.get("n") not in (None, 1):
        raise RequestError(f"n is {body['n']}, this server gives one answer to a prompt (n = 1)")
    for name, neutral in NOT_OFFERED.items():
        if body.get(name) not in (None, *neutral):
            raise RequestError(f"{name} is {body[name]!r}, which this server does not offer: leave it out")
    longest = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    temperature = _number(body, "temperature", 1.0, 0.0, 10.0)
    options = body.get("stream_options") or {}
    return Request(
        style,
        prompts,
        _sampling(body, temperature, longest, 256),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _sampling(values: dict[str, Any], temperature: float, longest: str, default: int) -> Sampling:
    stop = values.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(each, str) and each for each in stops):
        raise RequestError("stop must be a text or a list of texts")
    seed = values.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise RequestError(f"seed is {seed!r}, it must be a whole number")
    return Sampling(
        max_new_tokens=int(_number(values, longest, default, 1, LARGEST_ANSWER, whole=True)),
        temperature=temperature,
        top_p=_number(values, "top_p", 1.0, 0.0, 1.0),
        top_k=int(_number(values, "top_k", 0, -1, 1_000_000, whole=True)),
        repetition_penalty=_number(values, "repetition_penalty", 1.0, 0.01, 10.0),
        seed=seed,
        stop=tuple(stops),
    )


def _number(
    values: dict[str, Any], name: str, default: float, low: float, high: float, *, whole: bool = False
) -> float:
    value = values.get(name)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise RequestError(f"{name} is {value!r}, it must be {kind} from {low:g} to {high:g}")
    return value


def _flag(values: dict[str, Any], name: str) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} is {value!r}, it must be true or false")
    return bool(value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{name} must be text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError as refusal:
        raise RequestError(f"{name} holds half a character at position {refusal.start} (a lone surrogate)") from refusal
    return value


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise RequestError("messages must be a list with at least one message")
    checked = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise RequestError(f"message {number} needs a role: system, user or assistant")
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
                raise RequestError(
                    f"content of message {number} has a part that is no text: this model reads only text"
                )
            content = "".join(part["text"] for part in content)
        checked.append({"role": message["role"], "content": _text(content, f"content of message {number}")})
    return checked


def _inputs_reply(request: Request, prompt: Prompt, pieces: list[Piece]) -> dict[str, Any]:
    text = "".join(piece.text for piece in pieces)
    if request.return_full_text:
        shown = prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
        text = shown + text
    answer: dict[str, Any] = {"generated_text": text}
    if request.details:
        answer["details"] = {
            "finish_reason": pieces[-1].finish_reason,
            "prompt_tokens": pieces[-1].prompt_tokens,
            "generated_tokens": pieces[-1].generated_tokens,
            "seed": request.sampling.seed,
            "tokens": [{"id": p.token_id, "text": p.text, "logprob": p.logprob} for p in pieces],
        }
    return answer


def _inputs_event(piece: Piece, text: str) -> dict[str, Any]:
    token = {"id": piece.token_id, "text": piece.text, "logprob": piece.logprob, "special": not piece.text}
    event: dict[str, Any] = {"token": token, "generated_text": None, "details": None}
    if piece.finish_reason:
        event["generated_text"] = text
        event["details"] = {
            "finish_reason": piece.finish_reason,
            "prompt_tokens": piece.prompt_tokens,
            "generated_tokens": piece.generated_tokens,
        }
    return event


def _openai_head(request: Request, *, stream: bool) -> dict[str, Any]:
    if request.style == "chat":
        prefix, kind = "chatcmpl", "chat.completion.chunk" if stream else "chat.completion"
    else:
        prefix, kind = "cmpl", "text_completion"
    return {"id": f"{prefix}-{request.id}", "object": kind, "created": request.created, "model": request.model}


def _usage(answers: list[list[Piece]]) -> dict[str, Any]:
    prompt = sum(pieces[-1].prompt_tokens for pieces in answers)
    generated = sum(pieces[-1].generated_tokens for pieces in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(pieces[-1].known_tokens for pieces in answers)},
    }


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
