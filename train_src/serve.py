"""The endpoint's server: GET /ping, POST /invocations, POST /v1/chat/completions, /v1/completions.

`python3 serve.py` serves the archive in SM_MODEL_DIR (/opt/ml/model) on SAGEMAKER_BIND_TO_PORT (8080). /ping answers
200 only after the weights are loaded, the archive has passed its parity check and a real answer was generated. One
request is decoded at a time; others wait in a queue of bounded length, and are refused with 429 when it is full. A
client that hangs up frees its place.
"""

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

print("llmtuner serving: starting", flush=True)

import uvicorn  # noqa: E402 (the line above must not wait)
from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request as HttpRequest  # noqa: E402
from starlette.responses import JSONResponse, Response, StreamingResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

LONGEST_QUEUE = int(os.environ.get("LLMTUNER_QUEUE", "64"))
LARGEST_BODY = 6 * 1024 * 1024  # bytes, as SageMaker's own limit for a real-time endpoint


class Server:
    """Holds the loaded model and the one thread that decodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.generator: Any = None
        self.failure = ""
        self.waiting = 0
        self.decoding = ThreadPoolExecutor(1, "decode")

    def load(self) -> None:
        """Load, check and answer once; runs in the decoding thread."""
        started = time.monotonic()
        import parity
        from generation import Generator, Sampling

        try:
            generator = Generator(self.folder)
            if (self.folder / "parity.json").is_file():
                parity.check(self.folder, generator)
            ids = generator.prompt_ids([{"role": "user", "content": "Hello"}])
            answer = list(generator.stream(ids, Sampling(max_new_tokens=4)))
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            print(f"loading failed: {self.failure}", file=sys.stderr, flush=True)
            raise
        self.generator = generator
        print(f"ready after {time.monotonic() - started:.1f} s, first answer of {len(answer)} tokens", flush=True)

    async def ping(self, _: HttpRequest) -> Response:
        """200 when requests can be answered."""
        if self.generator is None:
            return JSONResponse({"status": "loading", "failure": self.failure}, status_code=503)
        return JSONResponse({"status": "ready", "has_base": self.generator.has_base})

    async def invoke(self, http: HttpRequest) -> Response:
        """Every kind of body at every path."""
        import protocol
        from generation import RequestError

        try:
            if self.generator is None:
                raise RequestError(self.failure or "the model is still loading", status=503)
            request = protocol.parse(await _body(http))
            prompts = protocol.encode_prompts(self.generator, request)
            if self.waiting >= LONGEST_QUEUE:
                raise RequestError(f"{self.waiting} requests are waiting already: try again later", status=429)
            for ids in prompts:
                self.generator.check_room(ids, base=request.base)
        except RequestError as error:
            headers = {"Retry-After": "2"} if error.status in (429, 503) else None
            return JSONResponse(protocol.error(error, error.status), error.status, headers)
        cancelled = threading.Event()

        def decode(ids: list[int]) -> Iterator[Any]:
            return self.generator.stream(ids, request.sampling, base=request.base, is_cancelled=cancelled.is_set)

        if request.stream:
            stream = self._stream(lambda: protocol.events(request, decode(prompts[0])), cancelled)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.waiting += 1
        try:
            answers = await self._unless_gone(http, cancelled, lambda: [list(decode(ids)) for ids in prompts])
        finally:
            self.waiting -= 1
        return JSONResponse(protocol.reply(request, answers)) if answers is not None else Response(status_code=499)

    async def _unless_gone(self, http: HttpRequest, cancelled: threading.Event, work: Callable[[], Any]) -> Any:
        """The result of the work; None, with the work cancelled, when the client hangs up first."""
        done = asyncio.get_running_loop().run_in_executor(self.decoding, work)
        gone = asyncio.ensure_future(_hang_up(http))
        await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            gone.cancel()
            return done.result()
        cancelled.set()
        await done
        return None

    async def _stream(self, make_events: Callable[[], Iterator[str]], cancelled: threading.Event) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | BaseException | None] = asyncio.Queue()

        def decode() -> None:
            try:
                for event in make_events():
                    loop.call_soon_threadsafe(queue.put_nowait, event)
                loop.call_soon_threadsafe(queue.put_nowait, None)
            except BaseException as error:
                loop.call_soon_threadsafe(queue.put_nowait, error)
                raise

        self.waiting += 1
        future = loop.run_in_executor(self.decoding, decode)
        try:
            while (event := await queue.get()) is not None:
                if isinstance(event, BaseException):
                    import protocol

                    yield f"data: {json.dumps(protocol.error(event, 500))}\n\n"
                    return
                yield event
        finally:
            cancelled.set()
            self.waiting -= 1
            future.cancel()


async def _body(http: HttpRequest) -> Any:
    from generation import RequestError

    raw = await http.body()
    if len(raw) > LARGEST_BODY:
        raise RequestError(f"the body has {len(raw)} bytes, at most {LARGEST_BODY} are taken", status=413)
    try:
        return json.loads(raw)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from error


async def _hang_up(http: HttpRequest) -> None:
    """Return when the client has gone; the body has been read, so the next message can only be that."""
    while (await http.receive())["type"] != "http.disconnect":
        continue


def create_app(folder: Path) -> Starlette:
    """The ASGI application; loading starts with it and goes on behind /ping."""
    server = Server(folder)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        loading = server.decoding.submit(server.load)
        yield
        loading.cancel()
        server.decoding.shutdown(wait=False, cancel_futures=True)

    paths = ("/invocations", "/v1/chat/completions", "/v1/completions")
    posts = [Route(path, server.invoke, methods=["POST"]) for path in paths]
    return Starlette(routes=[Route("/ping", server.ping), *posts], lifespan=lifespan)


if __name__ == "__main__":
    model_folder = Path(os.environ.get("SM_MODEL_DIR") or "/opt/ml/model")
    port = int(os.environ.get("SAGEMAKER_BIND_TO_PORT") or 8080)
    host = os.environ.get("LLMTUNER_HOST", "0.0.0.0")  # noqa: S104 (SageMaker calls the container from outside)
    uvicorn.run(create_app(model_folder), host=host, port=port, log_level="warning")
