"""How fast the endpoint's server answers on a CPU, beside transformers' `model.generate` in the same run.

    python tests/benchmarks/serve_speed.py [--model FOLDER] [--threads 2] [--tokens 64] [--rounds 3]

Starts serve.py over a model folder (default: the embedded SmolLM2-135M-Instruct) and asks it over HTTP: one greedy
stream, eight at once, and the time to the first token: of a prompt of 128 tokens that the server has never seen, and of
one of 512, new and once more with another ending, when it remembers 384 of them. `generate` gets the same prompt, the
same number of threads and both types it could be loaded in; the faster one is what the server is compared with. Rates
count all of a request, reading the prompt included. Rounds take turns, the medians are printed.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers

MODEL = Path.home() / ".cache" / "llmtuner" / "models" / "smollm2-135m-instruct"
SERVE = Path(__file__).parents[2] / "train_src" / "serve.py"
PROMPT = "Once upon a time there was a lighthouse keeper who wrote a long letter every day. The first letter began:"
STREAMS = 8
FIRST_TOKEN_PROMPT = 128  # tokens
LONG_PROMPT, LONG_KNOWN = 512, 384  # tokens, and how many of them a second prompt begins with


@contextlib.contextmanager
def server(folder: Path, threads: int) -> Iterator[int]:
    """The port of serve.py as a process of its own, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "SM_MODEL_DIR": str(folder),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "LLMTUNER_HOST": "127.0.0.1",
        "OMP_NUM_THREADS": str(threads),
    }
    process = subprocess.Popen([sys.executable, str(SERVE)], env={**os.environ, **environment})
    try:
        while True:
            assert process.poll() is None, "the server ended"
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ping").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def ask(port: int, prompt: str, tokens: int) -> tuple[int, float, str, int]:
    """(tokens, seconds to the first of them, text, tokens of the prompt that were known) of one greedy stream.

    The client is the standard library's and takes the events apart after the last: it runs on the server's cores.
    """
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    started, first, lines = time.perf_counter(), 0.0, []
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - started
                lines.append(line)
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines]
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    usage = events[-1]["usage"]
    return usage["completion_tokens"], first, text, usage["prompt_tokens_details"]["cached_tokens"]


class Prompts:
    """Prompts of an exact number of tokens, none of which begins as another does."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
        self.numbers = itertools.count()

    def new(self, length: int, beginning: str = "") -> str:
        """A prompt that begins as said and goes on in a way of its own."""
        begun = self.tokenizer(beginning or f"Letter {next(self.numbers)}.", add_special_tokens=False)["input_ids"]
        own = self.tokenizer(f" Then {next(self.numbers)}.", add_special_tokens=False)["input_ids"]
        return self.tokenizer.decode([*begun, *own, *(self.ids * length)][:length])


def first_tokens(port: int, prompts: Prompts) -> dict[str, float]:
    """Seconds to the first token of each kind of prompt."""
    short, long = prompts.new(FIRST_TOKEN_PROMPT), prompts.new(LONG_PROMPT)
    begun = prompts.tokenizer.decode(prompts.tokenizer(long, add_special_tokens=False)["input_ids"][:LONG_KNOWN])
    found = {}
    for name, prompt, known in (
        (f"{FIRST_TOKEN_PROMPT}, all new", short, 0),
        (f"{LONG_PROMPT}, all new", long, 0),
        (f"{LONG_PROMPT}, {LONG_KNOWN} of them known", prompts.new(LONG_PROMPT, begun), LONG_KNOWN),
    ):
        _, found[name], _, cached = ask(port, prompt, 1)
        assert cached == known, f"{cached} tokens of the prompt were known, not {known}"
    return found


def together(port: int, prompt: str, tokens: int, streams: int) -> float:
    """Tokens per second of some streams in total."""
    with ThreadPoolExecutor(streams) as pool:
        started = time.perf_counter()
        answers = list(pool.map(lambda _: ask(port, prompt, tokens), range(streams)))
        return sum(answer[0] for answer in answers) / (time.perf_counter() - started)


def generate(model: Any, tokenizer: Any, prompt: str, tokens: int) -> tuple[float, str]:
    """(tokens per second, text) of `model.generate`, greedy."""
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    started = time.perf_counter()
    with torch.inference_mode():
        answer = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=0
        )[0, ids.shape[1] :]
    return len(answer) / (time.perf_counter() - started), tokenizer.decode(answer, skip_special_tokens=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    models = {
        f"generate {name}": transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
    prompts = Prompts(tokenizer)
    rates: dict[str, list[float]] = {}
    texts: dict[str, str] = {}
    first: dict[str, list[float]] = {}
    with server(options.model, options.threads) as port:
        for round_number in range(options.rounds + 1):
            found = {}
            for name, model in models.items():
                found[name], texts[name] = generate(model, tokenizer, PROMPT, options.tokens)
            started = time.perf_counter()
            used, _, texts["server"], _ = ask(port, PROMPT, options.tokens)
            found["server, 1 stream"] = used / (time.perf_counter() - started)
            found[f"server, {STREAMS} streams"] = together(port, PROMPT, options.tokens, STREAMS)
            latencies = first_tokens(port, prompts)
            if round_number:  # the first one warms up
                for name, latency in latencies.items():
                    first.setdefault(name, []).append(latency)
                for name, rate in found.items():
                    rates.setdefault(name, []).append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rival = max(medians[name] for name in models)
    print(f"{options.model.name}, {options.threads} threads, {options.tokens} tokens, {options.rounds} rounds")
    for name, rate in medians.items():
        print(f"{name:20} {rate:8.1f} tokens/s {rate / rival:6.2f} x generate")
    for name, latencies_of_all in first.items():
        print(f"first token, prompt of {name:24} {statistics.median(latencies_of_all) * 1000:8.0f} ms")
    same = texts["server"] == texts["generate fp32"]
    print(f"the server's text is {'the same as' if same else 'NOT that of'} generate's in fp32")


if __name__ == "__main__":
    main()
