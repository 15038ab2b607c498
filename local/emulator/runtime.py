"""InvokeEndpoint and its streaming twin: a request goes to a replica, its answer comes back."""

from __future__ import annotations

import json
import struct
import time
from binascii import crc32
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.operations import endpoints

BODY_LIMIT = 6_291_456
TIMEOUT_SECONDS = 60.0
STREAM_TIMEOUT_SECONDS = 480.0
_PASSED = ("content-type", "accept", "x-amzn-sagemaker-custom-attributes", "x-amzn-sagemaker-target-model")
_TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for "
    "each container in Amazon CloudWatch, resolve the issue, and try again."
)


class RefusalError(Exception):
    """A refusal of the runtime: code, status and body members."""

    def __init__(self, code: str, status: int, message: str, **members: Any) -> None:
        self.code, self.status = code, status
        self.body = {"Message": message, **members}
        super().__init__(message)


class Runtime:
    """The invocation door of one emulator."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.router = endpoints.Router()
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def target(self, name: str, headers: dict[str, str]) -> tuple[str, int]:
        """(variant, port) for an invocation; raises RefusalError as AWS answers."""
        document = self.context.store.get(endpoints.KIND, name)
        if document and document["EndpointStatus"] == "Creating":
            document = endpoints.refresh(self.context, document)
        if document is None or document["EndpointStatus"] not in ("InService", "Updating", "RollingBack"):
            message = f"Endpoint {name} of account {self.context.account_id} not found."
            raise RefusalError("ValidationError", 400, message, ErrorCode="NO_SUCH_ENDPOINT")
        if "x-amzn-sagemaker-inference-component" in headers:
            message = (
                "Inference Component Name header is not allowed for endpoints to which you dont plan to deploy inference "
                "components. Please remove the Inference Component Name header and try again."
            )
            raise RefusalError("ValidationError", 400, message, ErrorCode="INFERENCE_COMPONENT_NAME_NOT_ALLOWED")
        wanted = headers.get("x-amzn-sagemaker-target-variant")
        if wanted and wanted not in {item["VariantName"] for item in document["_variants"]}:
            raise RefusalError("ValidationError", 400, f"Variant {wanted} of endpoint {name} not found.")
        chosen = self.router.choose(document, wanted)
        if chosen is None:
            endpoints.refresh(self.context, document)
            raise RefusalError("ServiceUnavailable", 503, "The endpoint has no healthy instance at the moment.")
        return chosen

    async def post(
        self, port: int, headers: dict[str, str], body: bytes, timeout: float, path: str = "/invocations"
    ) -> aiohttp.ClientResponse:
        """Send a body to a replica; the answer's body is not read yet."""
        sent = {key: headers[key] for key in _PASSED if key in headers}
        if "x-amzn-sagemaker-accept" in headers:
            sent["accept"] = headers["x-amzn-sagemaker-accept"]
        limits = aiohttp.ClientTimeout(total=timeout)
        url = f"http://127.0.0.1:{port}{path}"
        return await self.session.post(url, data=body, headers=sent, timeout=limits)

    def model_error(self, name: str, status: int, text: str) -> RefusalError:
        """The container's own words inside AWS's sentence."""
        region, account = self.context.region, self.context.account_id
        group = f"/aws/sagemaker/Endpoints/{name}"
        who = "client" if 400 <= status < 500 else "server"
        see = f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}#logEventViewer:group={group}"
        message = f'Received {who} error ({status}) from primary with message "{text}". See {see} in account {account} for more information.'
        return RefusalError(
            "ModelError",
            424,
            message,
            ErrorCode=f"{who.upper()}_ERROR_FROM_MODEL",
            LogStreamArn=f"arn:aws:logs:{region}:{account}:log-group:{group}",
            OriginalMessage=text,
            OriginalStatusCode=status,
        )

    async def invoke(self, name: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """One invocation: (status, headers, body)."""
        variant, port = self.target(name, headers)
        try:
            async with await self.post(port, headers, body, TIMEOUT_SECONDS) as answer:
                content = await answer.read()
        except TimeoutError:
            raise self.model_error(name, 0, _TIMED_OUT) from None
        except aiohttp.ClientError:
            raise self._gone(name) from None
        self._count(name, variant)
        if answer.status >= 400:
            raise self.model_error(name, answer.status, content.decode("utf-8", "replace"))
        if len(content) > BODY_LIMIT:
            raise self.model_error(name, 500, "The response is larger than 6291456 bytes.")
        sent = {
            "content-type": answer.headers.get("content-type", "application/octet-stream"),
            "x-amzn-invoked-production-variant": variant,
        }
        if attributes := answer.headers.get("x-amzn-sagemaker-custom-attributes"):
            sent["x-amzn-sagemaker-custom-attributes"] = attributes
        return 200, sent, content

    async def stream(
        self, name: str, headers: dict[str, str], body: bytes
    ) -> tuple[dict[str, str], AsyncIterator[bytes]]:
        """A streaming invocation: headers, and the frames of the event stream."""
        variant, answer = await self._open(name, headers, body, "/invocations")
        sent = {
            "content-type": "application/vnd.amazon.eventstream",
            "x-amzn-sagemaker-content-type": answer.headers.get("content-type", "application/octet-stream"),
            "x-amzn-invoked-production-variant": variant,
        }
        return sent, _frames(answer)

    async def chat(
        self, name: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], AsyncIterator[bytes]]:
        """A chat completion: the container's own answer, status and bytes unchanged, streaming or not."""
        _, answer = await self._open(name, headers, body, "/v1/chat/completions")
        return answer.status, {"content-type": answer.headers.get("content-type", "application/json")}, _parts(answer)

    async def _open(
        self, name: str, headers: dict[str, str], body: bytes, path: str
    ) -> tuple[str, aiohttp.ClientResponse]:
        """(variant, answer whose body is still to come); an error of the container is read and raised."""
        variant, port = self.target(name, headers)
        try:
            answer = await self.post(port, headers, body, STREAM_TIMEOUT_SECONDS, path)
        except aiohttp.ClientError:
            raise self._gone(name) from None
        self._count(name, variant)
        if answer.status >= 400:
            async with answer:
                raise self.model_error(name, answer.status, (await answer.read()).decode("utf-8", "replace"))
        return variant, answer

    def _gone(self, name: str) -> RefusalError:
        """The refusal for an instance that does not answer, after looking which ones still do."""
        document = self.context.store.get(endpoints.KIND, name)
        if document:
            endpoints.refresh(self.context, document)
        return RefusalError("ServiceUnavailable", 503, "The instance that had the request is gone; try again.")

    def _count(self, name: str, variant: str) -> None:
        self.context.invocations.setdefault((name, variant), []).append(time.time())


async def _parts(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:
        async for part in answer.content.iter_any():
            yield part


async def _frames(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async with answer:
            async for part in answer.content.iter_any():
                yield frame(
                    {
                        ":event-type": "PayloadPart",
                        ":content-type": "application/octet-stream",
                        ":message-type": "event",
                    },
                    part,
                )
    except TimeoutError:
        text = "Your model primary did not complete sending the inference response in the allotted time."
        yield _exception("ModelStreamError", text, "ModelInvocationTimeExceeded")
    except aiohttp.ClientError:
        yield _exception("ModelStreamError", "The model's response stream broke off.", "StreamBroken")


def _exception(kind: str, message: str, code: str) -> bytes:
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, json.dumps({"Message": message, "ErrorCode": code}).encode())


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of AWS's event stream encoding: lengths, checksum, headers, payload, checksum."""
    packed = b"".join(
        struct.pack("!B", len(name)) + name.encode() + b"\x07" + struct.pack("!H", len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack("!I", crc32(prelude)) + packed + payload
    return message + struct.pack("!I", crc32(message))
