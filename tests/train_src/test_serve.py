"""The endpoint's server over a real archive, spoken to over HTTP as SageMaker and OpenAI clients do."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import inference
import serve
from generation import Generator, RequestError
from sampling import Sampling

QUESTION = "What is the colour of thing 3?"


class Endpoint:
    """serve.py as a process of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "code" / "serve.py")],
            env={
                **os.environ,
                "SM_MODEL_DIR": str(folder),
                "SAGEMAKER_BIND_TO_PORT": str(self.port),
                "LLMTUNER_HOST": "127.0.0.1",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def wait(self, status: int = 200) -> httpx.Response:
        """The first answer of /ping with this status."""
        deadline = time.monotonic() + 180
        while True:
            try:
                answer = self.client.get("/ping")
                if answer.status_code == status:
                    return answer
            except httpx.TransportError:
                assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)  # a server gives no other sign of being ready than its answer

    def wait_for(self, status: int, body: Any) -> httpx.Response:
        """Repeat a request until it is answered with this status."""
        deadline = time.monotonic() + 180
        while (answer := self.post(body)).status_code != status:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.02)
        return answer

    def post(self, body: Any, path: str = "/invocations") -> httpx.Response:
        return self.client.post(path, json=body)

    def close(self) -> int:
        self.client.close()
        self.process.terminate()
        return self.process.wait(30)


@pytest.fixture(scope="module")
def endpoint(finished: dict[str, Path]) -> Iterator[Endpoint]:
    server = Endpoint(finished["causal"] / "model")
    server.wait()
    yield server
    assert server.close() in (0, -15)


@pytest.fixture(scope="module")
def seq2seq(finished: dict[str, Path]) -> Generator:
    return Generator(finished["seq2seq"] / "model")


def test_both_kinds_of_body_give_the_same_greedy_answer(endpoint: Endpoint) -> None:
    inputs = endpoint.post({"inputs": QUESTION, "parameters": {"max_new_tokens": 12}}).json()
    chat = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "temperature": 0}
    for path in ("/invocations", "/v1/chat/completions"):
        answer = endpoint.post(chat, path).json()
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": inputs[0]["generated_text"]}
    assert answer["usage"]["completion_tokens"] <= 12
    assert answer["usage"]["total_tokens"] == sum(
        answer["usage"][f"{kind}_tokens"] for kind in ("prompt", "completion")
    )


def test_the_server_asks_for_huge_pages(endpoint: Endpoint) -> None:
    variables = Path(f"/proc/{endpoint.process.pid}/environ").read_bytes().split(b"\0")
    assert b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in variables


def test_the_base_answers_differently_and_on_demand(endpoint: Endpoint) -> None:
    body = {"inputs": QUESTION, "parameters": {"max_new_tokens": 12}}
    tuned = endpoint.post(body).json()
    assert endpoint.post({**body, "model": "base"}).json() != tuned
    assert endpoint.post(body).json() == tuned


def test_a_stream_joins_to_the_whole_answer(endpoint: Endpoint) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "temperature": 0}
    whole = endpoint.post(body).json()["choices"][0]["message"]["content"]
    with endpoint.client.stream("POST", "/invocations", json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    deltas = [json.loads(event)["choices"][0] for event in events]
    assert "".join(delta["delta"]["content"] for delta in deltas) == whole
    assert deltas[-1]["finish_reason"] in ("stop", "length")


def test_the_openai_client_works_unchanged(endpoint: Endpoint) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{endpoint.port}/v1", api_key="none")
    with client:
        answer = client.chat.completions.create(
            model="tuned", messages=[{"role": "user", "content": QUESTION}], max_tokens=5, temperature=0
        )
        assert answer.choices[0].message.content is not None
        stream = client.chat.completions.create(
            model="tuned",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=5,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage == answer.usage


def test_what_a_prompt_has_in_common_with_an_earlier_one_is_read_once_and_told(endpoint: Endpoint) -> None:
    letter = "The quick brown fox answers a question about the weather in the town. " * 14

    def ask(question: str, model: str) -> tuple[str, int, int]:
        body = {"prompt": letter + question, "max_tokens": 8, "temperature": 0, "model": model}
        answer = endpoint.post(body, "/v1/completions").json()
        usage = answer["usage"]
        return answer["choices"][0]["text"], usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    text, length, cached = ask("Why?", "tuned")
    assert (length > 130, cached) == (True, 0)
    assert ask("Why?", "tuned") == (text, length, 128)
    assert ask("Who was it, and when?", "tuned")[2] == 128
    assert ask("Why?", "base")[2] == 0, "another model reads it in its own way"


def test_a_seed_repeats_a_sampled_answer(endpoint: Endpoint) -> None:
    def sample(seed: int) -> str:
        parameters = {"max_new_tokens": 16, "temperature": 1.5, "seed": seed}
        return endpoint.post({"inputs": QUESTION, "parameters": parameters}).json()[0]["generated_text"]

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_a_temperature_next_to_zero_takes_the_likeliest_token(endpoint: Endpoint) -> None:
    greedy = endpoint.post({"inputs": QUESTION, "parameters": {"max_new_tokens": 8}}).json()
    for temperature in (1e-45, 1e-30, 1e-5):
        parameters = {"max_new_tokens": 8, "temperature": temperature}
        assert endpoint.post({"inputs": QUESTION, "parameters": parameters}).json() == greedy


def test_a_stop_sequence_ends_the_answer_and_is_not_part_of_it(endpoint: Endpoint) -> None:
    parameters = {"max_new_tokens": 30}
    whole = endpoint.post({"inputs": QUESTION, "parameters": parameters}).json()[0]["generated_text"]
    stop = whole[4:7]
    answer = endpoint.post({"inputs": QUESTION, "parameters": {**parameters, "stop": [stop], "details": True}}).json()
    assert answer[0]["generated_text"] == whole[: whole.index(stop)]
    assert answer[0]["details"]["finish_reason"] == "stop"


def test_several_prompts_get_an_answer_each(endpoint: Endpoint) -> None:
    answers = endpoint.post({"inputs": [QUESTION, "Hello"], "parameters": {"max_new_tokens": 4}}).json()
    assert len(answers) == 2


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"x": 1}, 400, 'the body needs "inputs", "messages" or "prompt"'),
        ([1], 400, "the body must be a JSON object"),
        ({"inputs": ""}, 400, "inputs must be text that is not empty"),
        ({"inputs": "a", "parameters": {"max_tokens": 3}}, 400, "unknown parameters max_tokens; known: max_new_tokens"),
        ({"inputs": "a", "parameters": {"temperature": "hot"}}, 400, "temperature is 'hot', it must be a number"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 0}}, 400, "max_new_tokens is 0, it must be a whole number"),
        ({"messages": [{"role": "robot", "content": "a"}]}, 400, "message 1 needs a role: system, user or assistant"),
        ({"prompt": "a", "n": 2}, 400, "n is 2"),
        ({"prompt": "a", "logprobs": 2}, 400, "logprobs is 2, which this server does not offer: leave it out"),
        ({"prompt": "a", "frequency_penalty": 0.5}, 400, "frequency_penalty is 0.5, which this server does not offer"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "has a part that is no text"),
        ({"inputs": "a", "model": "nobody"}, 404, "there is no model 'nobody'; there are: tuned, base"),
        ({"inputs": "half a \ud83d character"}, 400, "inputs holds half a character at position 7"),
        ({"inputs": "a", "parameters": {"\ud83d": 1}}, 400, "unknown parameters \\ud83d"),
        (
            {"inputs": "a", "parameters": {"temperature": -1}},
            400,
            "temperature is -1, it must be a number from 0 to 10",
        ),
        ({"inputs": "word " * 600}, 413, "tokens, the model reads 512"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(endpoint: Endpoint, body: Any, status: int, reason: str) -> None:
    answer = endpoint.client.post("/invocations", content=json.dumps(body))
    assert answer.status_code == status
    assert reason in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"{broken", b"", b"\xff", b"[" * 100_000, b'{"inputs": "a", "seed": ' + b"1" * 5000 + b"}"]
)
def test_a_body_that_is_not_json_is_told_so(endpoint: Endpoint, body: bytes) -> None:
    answer = endpoint.client.post("/invocations", content=body)
    assert answer.status_code == 400
    assert "the body is not JSON" in answer.json()["error"]["message"]


def test_a_body_that_is_too_large_is_refused_and_not_kept(endpoint: Endpoint) -> None:
    answer = endpoint.client.post("/invocations", content=(bytes(1_000_000) for _ in range(100)))
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "the body has 100000000 bytes, at most 6291456 are taken"
    lines = Path(f"/proc/{endpoint.process.pid}/status").read_text().splitlines()
    peak, now = (int(line.split()[1]) for name in ("VmHWM", "VmRSS") for line in lines if line.startswith(name))
    assert peak - now < 50_000  # kB


def test_the_server_stays_reachable_while_it_reads_a_long_prompt(endpoint: Endpoint) -> None:
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        asked = pool.submit(endpoint.post, {"inputs": "word " * 150_000})
        slowest = 0.0
        while not asked.done():
            before = time.monotonic()
            assert endpoint.client.get("/ping").status_code == 200
            slowest = max(slowest, time.monotonic() - before)
        took = time.monotonic() - started
    assert asked.result().status_code == 413
    assert slowest < took / 2


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("LLMTUNER_BATCH", "0", "a whole number from 1 to 1024: correct it, or unset it for 16"),
        ("LLMTUNER_QUEUE", "1.5", "a whole number from 1 to 100000: correct it, or unset it for 64"),
        ("LLMTUNER_PREFIX_SHARE", "10%", "a number from 0.0 to 0.4: correct it, or unset it for 0.1"),
        ("LLMTUNER_PREFIX_SHARE", "nan", "a number from 0.0 to 0.4: correct it, or unset it for 0.1"),
        ("SAGEMAKER_BIND_TO_PORT", "http", "a whole number from 1 to 65535: correct it, or unset it for 8080"),
    ],
)
def test_a_wrong_environment_variable_ends_the_server_with_one_line(name: str, value: str, valid: str) -> None:
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", name: value}
    ended = subprocess.run(
        [sys.executable, serve.__file__], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (1, f"{name} is {value!r}, it must be {valid}\n")


def test_a_full_queue_refuses_at_once_and_recovers(finished: dict[str, Path]) -> None:
    server = Endpoint(finished["causal"] / "model", LLMTUNER_BATCH="1", LLMTUNER_QUEUE="1")
    try:
        server.wait()
        body = json.dumps({"inputs": [QUESTION] * 2000, "parameters": {"max_new_tokens": 30}}).encode()
        head = f"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        small = {"inputs": "Hello", "parameters": {"max_new_tokens": 1}}
        with socket.create_connection(("127.0.0.1", server.port)) as busy:
            busy.sendall(head + body)
            refused = server.wait_for(429, small)
            assert "1 requests are waiting already" in refused.json()["error"]["message"]
            assert int(refused.headers["retry-after"]) >= 1
        # The client has hung up without reading: its place is free again.
        assert server.wait_for(200, small).json()
    finally:
        server.close()


def test_requests_at_the_same_time_are_all_answered_alike(endpoint: Endpoint) -> None:
    body = {"inputs": QUESTION, "parameters": {"max_new_tokens": 8}}
    expected = endpoint.post(body).json()
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(endpoint.post(body).json())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 8


def test_a_seeded_answer_is_the_same_in_any_company(endpoint: Endpoint) -> None:
    parameters = {"max_new_tokens": 24, "temperature": 1.3, "top_p": 0.95, "seed": 11}
    body = {"inputs": QUESTION, "parameters": parameters}
    alone = endpoint.post(body).json()
    others = [{"inputs": f"Thing {n}? " * n, "parameters": {"max_new_tokens": 40 + n}} for n in range(1, 8)]
    with ThreadPoolExecutor(8) as pool:
        company = [pool.submit(endpoint.post, other) for other in others]
        crowded = endpoint.post(body).json()
        assert all(answer.result().status_code == 200 for answer in company)
    assert crowded == alone


def test_adapters_come_go_and_are_picked_by_name_or_header(endpoint: Endpoint, finished: dict[str, Path]) -> None:
    body = {"inputs": QUESTION, "parameters": {"max_new_tokens": 12}}
    tuned = endpoint.post(body).json()
    src = str(finished["causal"] / "model")
    assert endpoint.client.post("/adapters", json={"name": "mine", "src": src}).json()["status"] == "loaded"
    try:
        # The archive's own adapter, taken away and put on again.
        assert endpoint.post({**body, "model": "mine"}).json() == tuned
        by_header = endpoint.client.post(
            "/invocations", json=body, headers={"X-Amzn-SageMaker-Adapter-Identifier": "mine"}
        )
        assert by_header.json() == tuned
        assert endpoint.client.get("/adapters").json() == {"adapters": [{"name": "mine"}]}
        assert [model["id"] for model in endpoint.client.get("/v1/models").json()["data"]] == ["tuned", "base", "mine"]
        again = endpoint.client.post("/adapters", json={"name": "mine", "src": src})
        assert (again.status_code, again.json()["error"]["type"]) == (409, "conflict")
    finally:
        assert endpoint.client.delete("/adapters/mine").status_code == 200
    gone = endpoint.post({**body, "model": "mine"})
    assert gone.status_code == 404
    assert gone.json()["error"]["message"] == "there is no model 'mine'; there are: tuned, base"
    assert endpoint.client.delete("/adapters/mine").status_code == 404


def test_an_archive_that_fails_its_check_never_becomes_ready(finished: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(finished["causal"] / "model", folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    server = Endpoint(folder)
    try:
        deadline = time.monotonic() + 180
        while not (failure := server.wait(503).json()["failure"]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "other prompt ids than in training" in failure
        assert server.post({"inputs": "Hello"}).status_code == 503
    finally:
        server.close()


def test_the_hugging_face_handler_answers_as_the_server_does(endpoint: Endpoint, finished: dict[str, Path]) -> None:
    body = {"inputs": QUESTION, "parameters": {"max_new_tokens": 12}}
    model = inference.model_fn(str(finished["causal"] / "model"))
    answer = inference.transform_fn(model, json.dumps(body), "application/json", "application/json")
    assert json.loads(answer) == endpoint.post(body).json()
    with pytest.raises(RequestError, match="cannot stream"):
        inference.transform_fn(model, json.dumps({**body, "stream": True}), "application/json", "application/json")


def test_an_encoder_decoder_archive_answers_and_stops(seq2seq: Generator) -> None:
    ids = seq2seq.prompt_ids([{"role": "user", "content": QUESTION}])
    pieces = list(seq2seq.stream(ids, Sampling(max_new_tokens=40)))
    assert "".join(piece.text for piece in pieces).startswith("Thing")
    assert pieces[-1].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/opt/ml/model"),
        ({"SAGEMAKER_BASE_DIR": "/state/opt-ml"}, "/state/opt-ml/model"),  # the local cloud without namespaces
        ({"SAGEMAKER_BASE_DIR": "/state/opt-ml", "SM_MODEL_DIR": "/archive"}, "/archive"),
    ],
)
def test_archive_is_served_from_where_the_container_has_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("SM_MODEL_DIR", "SAGEMAKER_BASE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert serve.model_folder() == Path(folder)
