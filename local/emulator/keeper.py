"""What goes on also when nobody asks: following supervisors, scaling, delivering metrics, watching alarms."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from llmtuner_local.emulator import adapters, supervisors
from llmtuner_local.emulator.async_inference import AsyncInvocations
from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.errors import ServiceError
from llmtuner_local.emulator.operations import (
    endpoints,
    inference_components,
    processing_jobs,
    scaling,
    training_jobs,
)
from llmtuner_local.emulator.runtime import Runtime

log = logging.getLogger("llmtuner_local.emulator")
_REFRESH_SECONDS = 0.5
_JOBS = tuple((item.KIND, item.settled, item.refresh) for item in (training_jobs, processing_jobs))
_SERVING = tuple((item.KIND, lambda _: False, item.refresh) for item in (endpoints, inference_components))


class Keeper:
    """The background work of one emulator."""

    def __init__(self, context: Context, runtime: Runtime, queues: AsyncInvocations) -> None:
        self.context, self.runtime, self.queues = context, runtime, queues

    async def run(self) -> None:
        """Until cancelled."""
        limits = self.context.limits
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self._follow, _REFRESH_SECONDS))
            group.create_task(self._repeat(self._load_adapters, _REFRESH_SECONDS))
            group.create_task(self._repeat(self._deliver, limits.flush_seconds))
            group.create_task(self.queues.run())
            group.create_task(self._repeat(self._look_at_alarms, limits.alarm_seconds))

    @staticmethod
    async def _repeat(work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            try:
                await work()
            except ServiceError as error:
                log.warning("%s waits: %s", work.__name__, error.message)
            except Exception:
                log.exception("%s failed", work.__name__)
            await asyncio.sleep(seconds)

    async def _follow(self) -> None:
        """Ended jobs, dead replicas, deployments, deletions; then scaling."""
        for kind, settled, refresh in _JOBS + _SERVING:
            for name, _ in self.context.store.unsettled(kind, settled):
                # As it is now: a request may have changed or deleted it while another one was looked at.
                document = self.context.store.get(kind, name)
                if document is None:
                    continue
                try:
                    with self.context.store.batch():
                        refresh(self.context, document)
                except Exception:
                    log.exception("following %s %s failed", kind, name)
                await asyncio.sleep(0)  # requests come first
        with self.context.store.batch():
            inference_components.give_back_instances(self.context)
        self.runtime.forget_gone()
        supervisors.reap_ended()
        self.context.metrics.sample()
        with self.context.store.batch():
            scaling.act(self.context)

    async def _load_adapters(self) -> None:
        """Beside the rest: a container may take a minute to load one."""
        await adapters.keep(self.context)

    async def _deliver(self) -> None:
        self.queues.report()
        if data := self.context.metrics.take():
            await asyncio.to_thread(self.context.metrics.deliver, data)

    async def _look_at_alarms(self) -> None:
        if self.context.alarms.needed:
            await asyncio.to_thread(self.context.alarms.look)
        if self.context.samples.needed:
            await asyncio.to_thread(self.context.samples.look)
