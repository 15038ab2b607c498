"""The emulator's door: who is let in, how much may be sent, and what the wire says of bad requests."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from botocore import UNSIGNED
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from emulator.conftest import Cloud

from llmtuner_kit import aws as aws_module

SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sagemaker/aws4_request, SignedHeaders=host, Signature=0a"
Send = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def address(emulator: Cloud) -> tuple[str, int]:
    found = urlsplit(emulator.sagemaker.meta.endpoint_url)
    assert found.hostname
    assert found.port
    return found.hostname, found.port


@pytest.fixture
def send(address: tuple[str, int]) -> Send:
    """A raw request; (status, headers in lower case, body)."""

    def call(
        path: str = "/", body: bytes = b"{}", method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        given = {name.replace("_", "-"): value for name, value in headers.items() if value}
        given = {"X-Amz-Target": "SageMaker.ListModels", "Authorization": SIGNED} | given
        with closing(http.client.HTTPConnection(*address, timeout=20)) as connection:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    return call


def code(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    status, headers, body = answer
    assert headers["x-amzn-requestid"]
    assert headers["x-amzn-errortype"] == json.loads(body)["__type"]
    return status, headers["x-amzn-errortype"]


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "[::1]:4580", "LOCALHOST:1"])
def test_local_names_are_answered(send: Send, host: str) -> None:
    assert send(Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:4580", "127.0.0.1.nip.io", "0.0.0.0", "[", " "]
)
def test_other_host_names_are_refused(send: Send, host: str) -> None:
    assert send(Host=host)[0] == 403
    assert send("/_health", method="GET", Host=host)[0] == 403


def test_web_pages_of_others_are_refused_and_local_ones_answered(send: Send) -> None:
    assert send(Origin="https://evil.example")[0] == 403
    assert send(Origin="null")[0] == 403
    assert send(Origin="http://localhost:8888")[0] == 200


def test_only_loopback_listens(address: tuple[str, int]) -> None:
    listening = {
        item.laddr.ip
        for item in psutil.net_connections("tcp")
        if item.status == psutil.CONN_LISTEN and item.laddr.port == address[1]
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("authorization", "kind"),
    [
        ("x", "IncompleteSignatureException"),
        ("Basic dGVzdDp0ZXN0", "IncompleteSignatureException"),
        ("AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sagemaker/aws4_request", "IncompleteSignatureException"),
        (SIGNED.replace("test/20260101/", "test/"), "IncompleteSignatureException"),
        (SIGNED.replace("/sagemaker/", "/s3/"), "InvalidSignatureException"),
    ],
)
def test_bad_form_of_a_signature_is_refused_in_awss_words(send: Send, authorization: str, kind: str) -> None:
    assert code(send(Authorization=authorization)) == (403, kind)
    status, _, body = send("/endpoints/any/invocations", Authorization=authorization)
    assert status == 403
    assert json.loads(body)["__type"] == kind


def test_unsigned_request_misses_its_token(emulator: Cloud) -> None:
    local = aws_module.connect("local").session
    client = local.client("sagemaker", config=Config(signature_version=UNSIGNED))
    with pytest.raises(ClientError, match="Missing Authentication Token") as caught:
        client.list_models()
    assert caught.value.response["Error"]["Code"] == "MissingAuthenticationTokenException"


def test_signatures_of_botocore_are_taken(send: Send, address: tuple[str, int]) -> None:
    url = f"http://{address[0]}:{address[1]}/"
    request = AWSRequest("POST", url, data=b"{}", headers={"X-Amz-Target": "SageMaker.ListModels"})
    SigV4Auth(Credentials("test", "test"), "sagemaker", "us-east-1").add_auth(request)
    assert send(**{name.replace("-", "_"): value for name, value in request.headers.items()})[0] == 200


def test_headers_have_an_end(address: tuple[str, int], send: Send) -> None:
    assert send(X_Long="x" * 60_000)[0] == 200
    assert send(X_Long="x" * 70_000)[0] == 431
    assert send("/?" + "q" * 40_000, X_Long="x" * 40_000)[0] == 431
    with socket.create_connection(address, timeout=20) as never_ending:
        never_ending.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\nx-long: ")
        told = _until_answered(never_ending, b"x" * 65_536)
    assert told.startswith(b"HTTP/1.1 431 ")


def _until_answered(connection: socket.socket, part: bytes) -> bytes:
    """Send the part again and again, at most 64 MB, until there is an answer."""
    connection.setblocking(False)
    for _ in range(1000):
        try:
            connection.sendall(part)
        except (BlockingIOError, ConnectionError):
            pass
        try:
            return connection.recv(100)
        except BlockingIOError:
            continue
    raise AssertionError("the emulator takes headers without end")


def test_bodies_of_operations_have_an_end(send: Send, address: tuple[str, int]) -> None:
    status, _, body = send(body=b" " * (4 * 1024 * 1024 + 1))
    assert (status, json.loads(body)["message"]) == (413, "HTTP content length exceeded 4194304 bytes.")
    assert send(body=b" " * 1_000_000 + b"{}")[0] == 200

    def endless() -> Any:
        for _ in range(100):
            yield b" " * 65_536

    headers = {"X-Amz-Target": "SageMaker.ListModels", "Authorization": SIGNED, "Transfer-Encoding": "chunked"}
    with closing(http.client.HTTPConnection(*address, timeout=20)) as connection:
        connection.request("POST", "/", endless(), headers, encode_chunked=True)
        assert connection.getresponse().status == 413


def test_invocation_over_six_megabytes_gets_awss_413(emulator: Cloud) -> None:
    with pytest.raises(ClientError, match=r"HTTP content length exceeded 6291456 bytes\.") as caught:
        emulator.runtime.invoke_endpoint(EndpointName="any", Body=b"x" * 6_291_457)
    assert caught.value.response["Error"]["Code"] == "413"


@pytest.mark.parametrize("length", ["-1", "abc", "99999999999999999999"])
def test_content_length_that_cannot_be_is_refused(address: tuple[str, int], length: str) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        head = (
            f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nX-Amz-Target: SageMaker.ListModels\r\n"
        )
        connection.sendall(f"{head}Authorization: {SIGNED}\r\n\r\n".encode())
        assert connection.recv(100).split()[1] in (b"400", b"413")


def test_no_http_at_all_is_a_bad_request(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"\x16\x03\x01 hello \r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_unknown_operations_are_400_whatever_they_are_called(send: Send) -> None:
    for target in ("SageMaker.MakeCoffee", "SageMaker.", "Kitchen.MakeCoffee", "x", "SageMaker.ListHubs"):
        assert code(send(X_Amz_Target=target)) == (400, "UnknownOperationException")


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"\xff\xfe", b"[1]", b"7", b'"x"', b"null", b'{"MaxResults": NaN}', b'{"MaxResults": "5"}', b'{"MaxResults": true}',
        b'{"MaxResults": 5.5}', b'{"MaxResults": 99999999999}', b'{"NameContains": 7}', b'{"NameContains": {}}',
        b'{"NameContains": ["a"]}', b'{"NameContains": "\\ud800"}', b"[" * 100_000, b'{"NameContains":' * 50_000,
    ],
)  # fmt: skip
def test_what_is_no_json_of_this_shape_cannot_be_deserialised(send: Send, body: bytes) -> None:
    assert code(send(body=body)) == (400, "SerializationException")


def test_members_that_nobody_knows_and_nulls_are_ignored(send: Send) -> None:
    status, _, body = send(body=b'{"Colour": "red", "NameContains": null, "MaxResults": 5}')
    assert (status, json.loads(body)["Models"].__class__) == (200, list)
