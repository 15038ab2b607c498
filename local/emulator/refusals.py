"""What sagemaker-runtime answers when it does not pass on a container's success: codes, statuses and texts of AWS."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context

TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container {name}. Review the latency metrics for each "
    "container in Amazon CloudWatch, resolve the issue, and try again."
)
STREAM_TIMED_OUT = "Your model {name} did not complete sending the inference response in the allotted time."
NO_CAPACITY = (
    "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress (if "
    "configured) or try to increase the capacity by invoking UpdateInferenceComponentRuntimeConfig API."
)
COMPONENT_MISSING = (
    "Inference Component Name header is required for endpoints to which you plan to deploy inference components. Please "
    "include Inference Component Name header or consider using SageMaker models."
)
COMPONENT_SUPERFLUOUS = (
    "Inference Component Name header is not allowed for endpoints to which you dont plan to deploy inference components. "
    "Please remove the Inference Component Name header and try again."
)


class RefusalError(Exception):
    """A refusal of the runtime: code, status and body members."""

    def __init__(self, code: str, status: int, message: str, **members: Any) -> None:
        self.code, self.status = code, status
        self.body = {"Message": message, **members}
        super().__init__(message)


def invalid(message: str, error_code: str = "") -> RefusalError:
    """ValidationError, the runtime's word for a request that cannot be."""
    return RefusalError("ValidationError", 400, message, **({"ErrorCode": error_code} if error_code else {}))


def no_such_endpoint(context: Context, name: str) -> RefusalError:
    return invalid(f"Endpoint {name} of account {context.account_id} not found.", "NO_SUCH_ENDPOINT")


def unavailable(message: str) -> RefusalError:
    return RefusalError("ServiceUnavailable", 503, message)


def model_error(context: Context, group: str, container: str, status: int, text: str | None) -> RefusalError:
    """The container's own words inside AWS's sentence; None: they could not be read."""
    region, account = context.region, context.account_id
    who = "client" if 400 <= status < 500 else "server"
    see = f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}#logEventViewer:group={group}"
    words = f'with message "{text}".' if text is not None else "and could not load the entire response body."
    message = (
        f"Received {who} error ({status}) from {container} {words} See {see} in account {account} for more information."
    )
    return RefusalError(
        "ModelError",
        424,
        message,
        ErrorCode=f"{who.upper()}_ERROR_FROM_MODEL",
        LogStreamArn=f"arn:aws:logs:{region}:{account}:log-group:{group}",
        OriginalMessage=text or "",
        OriginalStatusCode=status,
    )
