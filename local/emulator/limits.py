"""The times that SageMaker keeps. LLMTUNER_LIMITS (a JSON object) shortens them for tests and lessons."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields

VARIABLE = "LLMTUNER_LIMITS"


@dataclass(frozen=True)
class Limits:
    """Seconds, as on AWS where AWS tells them."""

    invocation_seconds: float = 60.0  # for a whole answer of InvokeEndpoint
    stream_seconds: float = 480.0  # for a whole streamed answer
    ping_seconds: float = 5.0  # between health checks of a serving container
    startup_seconds: float = 600.0  # for the first good ping, where the variant does not say
    metrics_seconds: float = 60.0  # between CPU and memory measurements of an instance
    flush_seconds: float = 2.0  # between deliveries of invocation metrics to CloudWatch
    scaling_window_seconds: float = 60.0  # over which target tracking averages
    high_resolution_window_seconds: float = 10.0  # the same for the metrics of high resolution
    drain_seconds: float = 60.0  # for the requests under way on an instance that is retired
    stop_seconds: float = 120.0  # between SIGTERM and SIGKILL for a job that is stopped
    alarm_seconds: float = 1.0  # between looks at the state of alarms

    @classmethod
    def from_environment(cls) -> Limits:
        """AWS's values, changed by LLMTUNER_LIMITS; raises ValueError for what is not a limit."""
        text = os.environ.get(VARIABLE)
        if not text:
            return cls()
        names = {item.name for item in fields(cls)}
        try:
            given = json.loads(text)
            unknown = sorted(set(given) - names)
            if unknown:
                raise ValueError(f"unknown: {', '.join(unknown)}")
            return cls(**{name: float(value) for name, value in given.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'{VARIABLE} is {text!r} ({error}). Valid: a JSON object of seconds, such as {{"stream_seconds": 5}}; '
                f"names: {', '.join(sorted(names))}."
            ) from None
