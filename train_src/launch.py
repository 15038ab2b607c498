"""One job on many processes: a process for each GPU of each host that resourceconfig.json names.

train.py calls this before it loads anything. With one process in all it does nothing; otherwise it starts this host's
share with the environment PyTorch's `env://` start-up reads (what torchrun sets) and stays as their parent. Not torchrun
itself: the one of the training image's PyTorch 2.9 kills its workers 30 s after SIGTERM, which only newer ones let one
change (github.com/pytorch/pytorch/pull/172596), and then ends with exit code 1, where a stopped SageMaker job has 120 s
to save and should end with 0.

LLMTUNER_PROCESSES sets the number for each host (for CPUs); LLMTUNER_MASTER says host:port where the first host's name
cannot be resolved.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from failures import TrainingError
from folders import Folders

PORT = 29400
SECONDS_TO_DIE = 20  # what the others get after one process has failed


def worker_environments(folders: Folders) -> list[dict[str, str]]:
    """What to set for each process of this host; empty when the job is a single process or this is a worker already."""
    if "RANK" in os.environ:
        return []
    resources = folders.resources()
    hosts: list[str] = resources.get("hosts") or ["algo-1"]
    current = resources.get("current_host", hosts[0])
    if current not in hosts:
        raise TrainingError(f"resourceconfig.json: current_host {current!r} is not among the hosts {hosts}")
    processes = os.environ.get("LLMTUNER_PROCESSES") or str(max(1, count_gpus()))
    if not processes.isdecimal() or not int(processes):
        raise TrainingError(
            f"LLMTUNER_PROCESSES is {processes!r}, it must be a whole number from 1: unset it for one a GPU"
        )
    per_host = int(processes)
    world = per_host * len(hosts)
    if world == 1:
        return []
    master = os.environ.get("LLMTUNER_MASTER") or f"{'127.0.0.1' if len(hosts) == 1 else hosts[0]}:{PORT}"
    address, _, port = master.rpartition(":")
    if not address or not port.isdecimal():
        raise TrainingError(f"LLMTUNER_MASTER is {master!r}, it must be host:port of the first host")
    shared = {
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(per_host),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // per_host)),
    }
    interface = resources.get("network_interface_name", "")
    if len(hosts) > 1 and Path("/sys/class/net", interface).is_dir() and interface:
        shared |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    first = hosts.index(current) * per_host
    return [{**shared, "RANK": str(first + local), "LOCAL_RANK": str(local)} for local in range(per_host)]


def run_workers(script: Path, environments: list[dict[str, str]]) -> int:
    """Start the processes and wait for all of them. Stop signals go to each; the first failure ends the rest."""
    print(f"starting {len(environments)} of {environments[0]['WORLD_SIZE']} processes", flush=True)
    # Children inherit it: a stop signal waits until Stop can take it, and does not kill a Python that is still starting.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    workers = [subprocess.Popen([sys.executable, str(script)], env={**os.environ, **each}) for each in environments]

    def pass_on(number: int, _: FrameType | None) -> None:
        for worker in workers:
            worker.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    left = {worker.pid: worker for worker in workers}
    while left:
        pid, status = os.wait()
        if pid not in left:
            continue
        left.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        if code:
            _end(list(left.values()))
            return code if code > 0 else 128 - code
    return 0


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + SECONDS_TO_DIE
    for worker in workers:
        try:
            worker.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def count_gpus() -> int:
    """NVIDIA GPUs the container sees, without loading CUDA."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))
