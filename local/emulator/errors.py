"""Errors as AWS gives them: a code and a text. `app` and `refusals` decide the form on the wire."""

from __future__ import annotations

INTERNAL = "InternalServerError: We encountered an internal error. Please try again."  # the FailureReason of a job


class ServiceError(Exception):
    """An answer of the service that is not a success."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        self.code, self.message, self.status = code, message, status
        super().__init__(message)


def validation(message: str) -> ServiceError:
    """The error most operations use for most failures."""
    return ServiceError("ValidationException", message)


def not_found(message: str = "Requested resource not found.") -> ServiceError:
    """SageMaker says ValidationException here; boto3's waiters depend on it."""
    return ServiceError("ValidationException", message)


def unknown_operation(name: str) -> ServiceError:
    return ServiceError("UnknownOperationException", f"The operation {name} is not known to this endpoint.")


def not_emulated(name: str) -> ServiceError:
    """An operation that AWS has and the emulator has not: the answer of a region that lacks it, which no SDK retries."""
    return ServiceError(
        "UnknownOperationException",
        f"The requested operation is not supported in the called region. (AWS has {name}; the local SageMaker emulator "
        "does not: see local/README.md.)",
    )
