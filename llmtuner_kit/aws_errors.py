"""What AWS answers when it refuses or fails, as what a user of the kit can put right.

Part of the doorway to AWS: others take what they need from aws.py.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    CredentialRetrievalError,
    IncompleteReadError,
    InvalidConfigError,
    InvalidRegionError,
    LoginError,
    NoAuthTokenError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from llmtuner_kit.errors import AccessError, KitError, NotReadyError, QuotaError, SettingsError

_NO_CREDENTIALS = (
    CredentialRetrievalError, InvalidConfigError, LoginError, NoAuthTokenError, NoCredentialsError,
    PartialCredentialsError, SSOError, TokenRetrievalError,
)  # fmt: skip
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden"}
_BAD_CREDENTIALS = {
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidAccessKeyId",
    "InvalidSignatureException",
    "OptInRequired",
    "SignatureDoesNotMatch",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_SIGN_IN_AGAIN = (
    "run `aws sso login`, or put new keys where the old ones were (where those were environment variables, start this "
    "again from a shell that has the new ones), then run the cell again"
)
# What a request is answered with whose time is not AWS's; the last two are also said of wrong keys.
_WRONG_CLOCK = ("RequestTimeTooSkewed", "Signature expired", "Signature not yet current")
# What reading an answer's body raises when the connection breaks; boto3 repeats requests, but not that.
BROKEN_BODY = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
THROTTLED = {"Throttling", "ThrottlingException", "TooManyRequestsException", "SlowDown", "RequestLimitExceeded"}


def translate(error: Exception, operation: str = "") -> KitError | None:
    """The KitError for a failure every user can meet at any call; None for all others."""
    if isinstance(error, _NO_CREDENTIALS):
        return AccessError(
            f"No AWS credentials: {error}", fix="run `aws configure` or `aws sso login`, or use target local"
        )
    if isinstance(error, NoRegionError | InvalidRegionError):
        return SettingsError(str(error), valid="such as us-east-1", fix="set region, or AWS_DEFAULT_REGION")
    if isinstance(error, SSLError):
        return NotReadyError(
            f"{operation}: {error}",
            fix="where a proxy opens TLS, set AWS_CA_BUNDLE to the file with your organization's certificates",
        )
    if isinstance(error, NoConnectionError | ConnectionClosedError):
        aws = ".amazonaws.com" in str(error)
        return NotReadyError(
            f"{operation}: nothing answers: {error}",
            fix="check the network, a proxy if you need one, and the region's name in the address"
            if aws
            else "check the network; for target local run `llmtuner local status` and `llmtuner local up`",
        )
    if isinstance(error, ReadTimeoutError):
        return NotReadyError(
            f"{operation}: no answer in time: {error}", fix="try again; ask for fewer tokens when a model was answering"
        )
    if not isinstance(error, ClientError):
        return None
    code, message = error_code(error), error_message(error)
    if code in _DENIED:
        if operation == "HeadBucket":
            return None  # who may not see the whole bucket may still see the own prefix: the caller knows
        return AccessError(f"{operation} was denied: {message}", fix=_denied_fix(message))
    if any(words in (code, *message.split(":")) for words in _WRONG_CLOCK):
        return AccessError(
            f"AWS does not accept the time of this machine ({code}): {message}",
            fix="set its clock right, then run again",
        )
    if code in _EXPIRED:
        return AccessError(f"The AWS credentials have expired ({code}): {message}", fix=_SIGN_IN_AGAIN)
    if code == "400" and operation in ("HeadObject", "HeadBucket"):  # an answer to HEAD has no body to say why in
        return AccessError(
            f"{operation}: S3 answers {message} (400) and no reason; it does so where credentials have expired.",
            fix=_SIGN_IN_AGAIN,
        )
    if code in _BAD_CREDENTIALS:
        return AccessError(
            f"AWS does not accept the credentials ({code}): {message}",
            fix="sign in again, or check the profile; a region that is not switched on in the account answers so too",
        )
    if code in ("ResourceLimitExceeded", "ServiceQuotaExceededException"):
        return QuotaError(message, fix=_quota_fix(message))
    if code in THROTTLED:
        return NotReadyError(
            f"{operation}: AWS asks to slow down ({code}): {message}", fix="wait a minute and run the cell again"
        )
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not operation.startswith("InvokeEndpoint"):
        return NotReadyError(
            f"{operation}: the service has a failure of its own ({code}): {message}",
            fix=("make room on that disk" if re.search("No space left|disk is full", message) else "wait a minute")
            + " and run the cell again",
        )
    return None


def _denied_fix(message: str) -> str:
    if "explicit deny" in message:
        return (
            "a policy that forbids it stands above all permissions: ask who looks after the account or the organization, "
            "or choose what it allows, such as another region or instance_type"
        )
    return "ask the account's owner for this permission; `llmtuner access show` prints the policy a user needs"


def _quota_fix(message: str) -> str:
    limit = re.search(r"service limit '([^']+)'", message)
    name = f"'{limit.group(1)}'" if limit else "this limit"
    return f"ask for more of {name} in the Service Quotas console (Amazon SageMaker), or choose another instance_type"


def error_code(error: BaseException) -> str:
    """AWS's error code of a ClientError (or of the one behind a KitError); empty for anything else."""
    found = error if isinstance(error, ClientError) else error.__cause__
    return str(found.response.get("Error", {}).get("Code", "")) if isinstance(found, ClientError) else ""


def error_message(error: BaseException) -> str:
    """AWS's message of a ClientError (or of the one behind a KitError), else the text of the error."""
    found = error if isinstance(error, ClientError) else error.__cause__
    return str(found.response.get("Error", {}).get("Message", "")) if isinstance(found, ClientError) else str(error)


def is_error(error: BaseException, *codes: str) -> bool:
    """Whether an error is AWS's answer with one of these codes."""
    return error_code(error) in codes
