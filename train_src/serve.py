"""The endpoint's server: GET /ping, POST /invocations, /v1/chat/completions and /v1/completions, and adapters.

`python3 serve.py` serves the archive in SM_MODEL_DIR (/opt/ml/model) on SAGEMAKER_BIND_TO_PORT (8080). /ping answers
200 only after the weights are loaded, the archive has passed its parity check and a real answer was generated.
Requests are answered together (batching.py): LLMTUNER_BATCH of them at a time, LLMTUNER_QUEUE more may wait, the next
is refused with 429. A client that hangs up frees its place. What prompts begin with is remembered (prefixes.py) in
LLMTUNER_PREFIX_SHARE of the free memory (0.1; 0 turns it off), for all who ask this endpoint.

`POST /adapters {"name", "src"}` loads a PEFT folder beside the weights, `DELETE /adapters/{name}` forgets it,
`GET /adapters` lists them. A request picks one by `model`, or by the header X-Amzn-SageMaker-Adapter-Identifier.
"""

import asyncio
import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import threads

if __name__ == "__main__":
    threads.wait_briefly()
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        # Huge pages for the weights, a tenth more tokens per second. The C library reads this only as a process begins.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})  # noqa: S606

print("llmtuner serving: starting", flush=True)

import uvicorn  # noqa: E402 (the line above must not wait)
from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request as HttpRequest  # noqa: E402
from starlette.responses import JSONResponse, Response, StreamingResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402


def _setting(name: str, default: float, low: float, high: float) -> Any:
    """A number from the environment. Ends the program with what is wrong when it is none, or out of range."""
    text = os.environ.get(name) or str(default)
    try:
        value = type(default)(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        kind = "a whole number" if isinstance(default, int) else "a number"
        sys.exit(f"{name} is {text!r}, it must be {kind} from {low} to {high}: correct it, or unset it for {default}")
    return value


MOST_ROWS = _setting("LLMTUNER_BATCH", 16, 1, 1024)  # answers decoded together
LONGEST_QUEUE = _setting("LLMTUNER_QUEUE", 64, 1, 100_000)  # requests
CACHE_SHARE = 0.5  # of the memory free after loading, for keys and values of running answers
PREFIX_SHARE = _setting("LLMTUNER_PREFIX_SHARE", 0.1, 0.0, 0.4)  # and for those that prompts have begun with
PORT = _setting("SAGEMAKER_BIND_TO_PORT", 8080, 1, 65535)
LARGEST_BODY = 6 * 1024 * 1024  # bytes, as SageMaker's own limit for a real-time endpoint
ADAPTER_HEADER = "x-amzn-sagemaker-adapter-identifier"


class Server:
    """Holds the loaded model and the one thread that decodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scheduler: Any = None
        self.failure = ""
        self.thread = threading.Thread(target=self._work, name="decode", daemon=True)

    def load(self) -> None:
        """Load, check and answer once. Raises what is wrong with the archive, and keeps it for /ping to tell."""
        started = time.monotonic()
        import parity
        from batching import Scheduler
        from generation import Generator
        from sampling import Sampling

        try:
            generator = Generator(self.folder)
            if not generator.is_base:
                parity.check(self.folder, generator)
            ids = generator.prompt_ids([{"role": "user", "content": "Hello"}])
            answer = list(generator.stream(ids, Sampling(max_new_tokens=4)))
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            print(f"loading failed: {self.failure}", file=sys.stderr, flush=True)
            raise
        free = _free_bytes(generator.decoder.device.type)
        generator.decoder.prefixes.most_bytes = int(free * PREFIX_SHARE)
        self.scheduler = Scheduler(
            generator, most_rows=MOST_ROWS, longest_queue=LONGEST_QUEUE, cache_bytes=int(free * CACHE_SHARE)
        )
        print(f"ready after {time.monotonic() - started:.1f} s, first answer of {len(answer)} tokens", flush=True)

    def _work(self) -> None:
        self.load()
        self.scheduler.run()

    async def ping(self, _: HttpRequest) -> Response:
        """200 when requests can be answered."""
        if self.scheduler is None:
            return JSONResponse({"status": "loading", "failure": self.failure}, status_code=503)
        has_base = self.scheduler.generator.has_base
        return JSONResponse({"status": "ready", "has_base": has_base, **self.scheduler.load()})

    async def invoke(self, http: HttpRequest) -> Response:
        """Every kind of body at every path."""
        import protocol
        from generation import RequestError

        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Any] = asyncio.Queue()

        def deliver(number: int, piece: Any) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, (number, piece))

        try:
            scheduler = self._ready()
            body = await _body(http)
            if isinstance(body, dict) and (adapter := http.headers.get(ADAPTER_HEADER)):
                body["model"] = adapter
            request = protocol.parse(body)
            # Long prompts take seconds; others, and /ping, need not wait.
            prompts = await asyncio.to_thread(protocol.encode_prompts, scheduler.generator, request)
            ticket = scheduler.submit(prompts, request.sampling, request.model, deliver)
        except RequestError as error:
            return self._refusal(error)
        if request.stream:
            stream = _events(request, pieces, ticket)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        try:
            answers = await _unless_gone(http, _collect(pieces, len(prompts)))
        except Exception as error:  # noqa: BLE001 (what ended the decoding is told to the client)
            return JSONResponse(protocol.error(error, 500), 500)
        finally:
            ticket.cancel()
        return JSONResponse(protocol.reply(request, answers)) if answers is not None else Response(status_code=499)

    async def adapters(self, http: HttpRequest) -> Response:
        """List, load or forget adapters."""
        from generation import RequestError

        try:
            generator = self._ready().generator
            if http.method == "GET":
                return JSONResponse({"adapters": [{"name": name} for name in generator.adapters]})
            if http.method == "DELETE":
                generator.remove_adapter(http.path_params["name"])
                return JSONResponse({"name": http.path_params["name"], "status": "deleted"})
            body = await _body(http)
            if not isinstance(body, dict) or not all(body.get(key) and isinstance(body[key], str) for key in _ADAPTER):
                raise RequestError('the body needs "name" and "src", the folder of the adapter')
            await asyncio.to_thread(generator.add_adapter, body["name"], _adapter_folder(body["src"]))
            return JSONResponse({"name": body["name"], "status": "loaded"})
        except RequestError as error:
            return self._refusal(error)

    async def models(self, _: HttpRequest) -> Response:
        """What `model` may be, as OpenAI lists models."""
        from generation import RequestError

        try:
            names = self._ready().generator.names()
        except RequestError as error:
            return self._refusal(error)
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    def _ready(self) -> Any:
        from generation import RequestError

        if self.scheduler is None:
            raise RequestError(self.failure or "the model is still loading", status=503)
        return self.scheduler

    def _refusal(self, error: Any) -> Response:
        import protocol

        headers = None
        if error.status in (429, 503):
            headers = {"Retry-After": str(self.scheduler.retry_after() if self.scheduler else 5)}
        return JSONResponse(protocol.error(error, error.status), error.status, headers)


_ADAPTER = ("name", "src")


def _adapter_folder(src: str) -> Path:
    """The folder of an adapter: `src` itself, or `adapter/` of an archive."""
    folder = Path(src.removeprefix("file://"))
    return folder / "adapter" if (folder / "adapter" / "adapter_config.json").is_file() else folder


def _free_bytes(device: str) -> int:
    """Memory that is free now, of the GPU or of the machine (of the container, where it has a limit)."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo")
    if not lines.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    free = next(int(line.split()[1]) * 1024 for line in lines.read_text().splitlines() if "MemAvailable" in line)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


async def _collect(pieces: "asyncio.Queue[Any]", prompts: int) -> list[list[Any]]:
    """The pieces of every prompt, when all have come to their end. Raises what ended one early."""
    answers: list[list[Any]] = [[] for _ in range(prompts)]
    left = prompts
    while left:
        number, piece = await pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        answers[number].append(piece)
        left -= piece.finish_reason is not None
    return answers


async def _unless_gone(http: HttpRequest, work: Any) -> Any:
    """The result of the work; None when the client hangs up first."""
    done = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(http))
    await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if done.done():
        return done.result()
    done.cancel()
    return None


async def _events(request: Any, pieces: "asyncio.Queue[Any]", ticket: Any) -> AsyncIterator[str]:
    """Server-sent events of one prompt's answer; a client that goes ends it."""
    import protocol

    stream = protocol.EventStream(request)
    try:
        while True:
            _, piece = await pieces.get()
            if isinstance(piece, BaseException):
                yield f"data: {json.dumps(protocol.error(piece, 500))}\n\n"
                return
            yield stream.event(piece)
            if piece.finish_reason:
                yield stream.end(piece)
                return
    finally:
        ticket.cancel()


async def _body(http: HttpRequest) -> Any:
    from generation import RequestError
    from protocol import parse_json

    raw, size = bytearray(), 0
    async for part in http.stream():
        size += len(part)
        if size <= LARGEST_BODY:
            raw += part
    if size > LARGEST_BODY:  # all of it was read, or the client would still be sending and miss the answer
        raise RequestError(f"the body has {size} bytes, at most {LARGEST_BODY} are taken", status=413)
    return parse_json(raw)


async def _hang_up(http: HttpRequest) -> None:
    """Return when the client has gone; the body has been read, so the next message can only be that."""
    while (await http.receive())["type"] != "http.disconnect":
        continue


def model_folder() -> Path:
    """Where SageMaker unpacks the archive; where the local cloud has no namespaces, /opt/ml is SAGEMAKER_BASE_DIR."""
    base = os.environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml"
    return Path(os.environ.get("SM_MODEL_DIR") or f"{base}/model")


def create_app(folder: Path) -> Starlette:
    """The ASGI application; loading starts with it and goes on behind /ping."""
    server = Server(folder)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        server.thread.start()
        yield
        if server.scheduler is not None:
            server.scheduler.stop()

    return Starlette(routes=list(_routes(server)), lifespan=lifespan)


def _routes(server: Server) -> Iterator[Route]:
    yield Route("/ping", server.ping)
    for path in ("/invocations", "/v1/chat/completions", "/v1/completions"):
        yield Route(path, server.invoke, methods=["POST"])
    yield Route("/v1/models", server.models)
    yield Route("/adapters", server.adapters, methods=["GET", "POST"])
    yield Route("/adapters/{name}", server.adapters, methods=["DELETE"])


if __name__ == "__main__":
    host = os.environ.get("LLMTUNER_HOST", "0.0.0.0")  # noqa: S104 (SageMaker calls the container from outside)
    uvicorn.run(create_app(model_folder()), host=host, port=PORT, log_level="warning")
