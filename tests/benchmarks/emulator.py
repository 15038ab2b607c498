"""The figures of the SageMaker emulator in one run and one table, with their targets and with rivals.

    .venv/bin/python tests/benchmarks/emulator.py [--requests 20000] [--calls 4000] [--endpoints 50]

Everything is measured on two state folders: 1000 ended jobs with one endpoint, and 200 ended jobs with 50 endpoints that
serve. The rivals: moto_server for Describe and List (same calls, same client), SageMaker local mode for the first line of
user code (where a Docker engine runs). About five minutes on two idle cores; other work on them shows in every figure.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from statistics import median

import describe_and_list
import first_line
import invocation_overhead
from emulator_cloud import endpoint_name, fill, local_cloud, serve

CLIENTS = 32
_REST_SECONDS = 3
_TARGETS = {
    "start to ready (CPU time of the emulator)": "<= 1.5 s",
    "memory at rest": "<= 120 MB",
    "memory after everything": "",
    "CPU at rest": "",
    "DescribeTrainingJob": ">= 1000/s, 3x moto",
    "ListTrainingJobs": ">= 1000/s, 3x moto",
    "first line of user code, in processes": "<= 1.0 s",
    "first line of user code, in containers": "",
    f"InvokeEndpoint, {CLIENTS} clients, p50 / p99": "<= 3 / 15 ms",
    "  the container directly": "",
    "InvokeEndpoint without handler time": "",
    "  the container directly, without handler time": "",
}
_START, _MEMORY, _MEMORY_AFTER, _CPU, _DESCRIBE, _LIST, _FIRST, _FIRST_DOCKER, *_INVOKE = _TARGETS


def main() -> None:
    """Run everything once and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000, help="invocations of each load")
    parser.add_argument("--calls", type=int, default=4000, help="Describe and List calls")
    parser.add_argument("--endpoints", type=int, default=50, help="endpoints of the second state folder")
    parser.add_argument("--repeats", type=int, default=5, help="jobs until their first line")
    options = parser.parse_args()
    rival: dict[str, str] = {}
    describe, listing = describe_and_list.moto(1000, options.calls)
    rival[_DESCRIBE], rival[_LIST] = f"{describe:.0f}/s (moto)", f"{listing:.0f}/s (moto)"
    columns = {}
    for jobs, endpoints in ((1000, 1), (200, options.endpoints)):
        columns[f"{jobs} jobs, {endpoints} endpoints"] = measure(jobs, endpoints, options, rival)
    show(columns, rival)


def measure(jobs: int, endpoints: int, options: argparse.Namespace, rival: dict[str, str]) -> dict[str, str]:
    """The column of one state folder; on the first, the containers and their rival as well."""
    with local_cloud() as cloud:
        serve(cloud, endpoints)
        first_line.upload(cloud)
        cloud.stop_emulator()
        fill(cloud.home, jobs)
        seconds, cpu = cloud.start_emulator()
        found = {_START: f"{seconds:.2f} s ({cpu:.2f} s)"}
        time.sleep(_REST_SECONDS)
        before = sum(cloud.emulator().cpu_times()[:2])
        time.sleep(_REST_SECONDS)
        found[_CPU] = f"{(sum(cloud.emulator().cpu_times()[:2]) - before) / _REST_SECONDS:.1%}"
        found[_MEMORY] = f"{cloud.memory_mb():.0f} MB"
        describe, listing = describe_and_list.both(cloud.sagemaker_url, options.calls)
        found[_DESCRIBE], found[_LIST] = f"{describe:.0f}/s", f"{listing:.0f}/s"
        found[_FIRST] = f"{median(first_line.in_processes(cloud, options.repeats)):.2f} s"
        loads = invocation_overhead.measure(cloud, endpoint_name(0), options.requests, CLIENTS)
        for name, load in zip(_INVOKE, loads.values(), strict=True):
            found[name] = f"{load} ({load.rate:.0f}/s)"
        if _FIRST not in rival and first_line.engine_runs():
            times = first_line.in_containers(cloud, min(3, options.repeats))
            found[_FIRST_DOCKER] = f"{median(times['local-docker']):.2f} s"
            whole, rest = median(times["with its import"]), median(times["without"])
            rival[_FIRST] = rival[_FIRST_DOCKER] = f"{rest:.2f} s, {whole:.2f} with import (local mode)"
        found[_MEMORY_AFTER] = f"{cloud.memory_mb():.0f} MB"
    return found


def show(columns: dict[str, dict[str, str]], rival: dict[str, str]) -> None:
    """Print the table."""

    def line(cells: Iterable[str]) -> None:
        first, *rest = cells
        print(f"{first:47}" + "".join(f"{cell:>27}" for cell in rest))

    line(["", "target", *columns, "rival"])
    for name, target in _TARGETS.items():
        line([name, target, *[column.get(name, "-") for column in columns.values()], rival.get(name, "")])


if __name__ == "__main__":
    main()
