"""Training jobs of several hosts: they find each other by name, end together and leave one result."""

from __future__ import annotations

from pathlib import Path

from emulator.conftest import LOG_GROUP, Cloud, archive

TWO = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10}
HOST = """
import json, os, pathlib, signal, socket, sys, time
resources = json.loads(open("/opt/ml/input/config/resourceconfig.json").read())
host, hosts = resources["current_host"], resources["hosts"]
"""


def test_torchrun_over_two_hosts_sums_over_both(emulator: Cloud) -> None:
    source = (
        HOST
        + """
if "RANK" not in os.environ:
    os.environ["GLOO_SOCKET_IFNAME"] = resources["network_interface_name"]
    place = ["--nnodes", "2", "--node_rank", str(hosts.index(host)), "--master_addr", hosts[0], "--master_port", "7777"]
    os.execvp("torchrun", ["torchrun", "--nproc_per_node", "1", *place, __file__])
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([10.0 ** dist.get_rank()])
dist.all_reduce(total)
pathlib.Path(f"/opt/ml/model/rank-{dist.get_rank()}").write_text(f"{dist.get_world_size()} {total.item():g}")
dist.destroy_process_group()
"""
    )
    job = emulator.ended(emulator.train(source, ResourceConfig=TWO, Environment={"OMP_NUM_THREADS": "1"}))
    assert job["TrainingJobStatus"] == "Completed", (job, emulator.log(job["TrainingJobName"]))
    assert archive(emulator, job) == {"rank-0": b"2 11", "rank-1": b"2 11"}


def test_hosts_talk_by_name_log_to_their_own_streams_and_leave_one_archive(emulator: Cloud) -> None:
    source = (
        HOST
        + """
if host == "algo-1":
    with socket.create_server((host, 0)) as server:
        pathlib.Path("/opt/ml/model/common").write_text("first")
        port = server.getsockname()[1]
        print("port", port, flush=True)
        assert server.getsockname()[0] == socket.gethostbyname("algo-1") != socket.gethostbyname("algo-2")
"""
        + "\npathlib.Path('/opt/ml/model', host).write_text(host)\nprint('I am', host)\n"
        + "time.sleep(0.2 * hosts.index(host)); pathlib.Path('/opt/ml/model/common').write_text('by ' + host)\n"
        + "pathlib.Path('/opt/ml/output/data', host + '.txt').write_text('x')\n"
    )
    name = emulator.train(source, ResourceConfig=TWO)
    job = emulator.ended(name)
    assert job["TrainingJobStatus"] == "Completed", (job, emulator.log(name))
    assert archive(emulator, job) == {"algo-1": b"algo-1", "algo-2": b"algo-2", "common": b"by algo-2"}
    streams = emulator.logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{name}/")["logStreams"]
    assert [item["logStreamName"].rpartition("-")[0] for item in streams] == [f"{name}/algo-1", f"{name}/algo-2"]
    assert {"I am algo-1", "I am algo-2"} <= set(emulator.log(name))


def test_one_failing_host_fails_the_job_and_ends_the_others(emulator: Cloud) -> None:
    source = (
        HOST
        + """
if host == "algo-2":
    pathlib.Path("/opt/ml/output/failure").write_text("shard 2 is broken")
    sys.exit(5)
time.sleep(600)
"""
    )
    job = emulator.ended(emulator.train(source, ResourceConfig=TWO))
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"] == "AlgorithmError: shard 2 is broken, exit code: 5"


def test_stop_reaches_every_host(emulator: Cloud) -> None:
    source = (
        HOST
        + """
def leave(*_):
    pathlib.Path("/opt/ml/model", host).write_text("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("waiting on", host, flush=True)
while True:
    time.sleep(0.1)  # not for long: Python 3.14 begins it even when a signal came during print
"""
    )
    name = emulator.train(source, ResourceConfig=TWO)
    for host in ("algo-1", "algo-2"):
        emulator.await_line(name, f"waiting on {host}")
    emulator.sagemaker.stop_training_job(TrainingJobName=name)
    job = emulator.ended(name)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert archive(emulator, job) == {"algo-1": b"saved", "algo-2": b"saved"}


def test_the_kits_own_launcher_starts_its_processes_on_both_hosts(emulator: Cloud) -> None:
    launcher = Path(__file__).parents[2] / "train_src"
    source = """
import os, sys
sys.path.insert(0, "/opt/ml/input/data/code")
from pathlib import Path
from folders import Folders
import launch
if environments := launch.worker_environments(Folders.from_environment()):
    sys.exit(launch.run_workers(Path(__file__), environments))
from group import Group
group = Group()
(total,) = group.sum(10.0 ** group.rank)
Path(f"/opt/ml/model/rank-{group.rank}").write_text(f"{group.size} {total:g}")
group.close()
"""
    request = emulator.request(source, ResourceConfig=TWO, Environment={"OMP_NUM_THREADS": "1"})
    code = request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
    for name in ("launch.py", "folders.py", "failures.py", "group.py"):
        emulator.put(code.split("/", 3)[3] + name, (launcher / name).read_text())
    emulator.sagemaker.create_training_job(**request)
    job = emulator.ended(request["TrainingJobName"])
    assert job["TrainingJobStatus"] == "Completed", (job, emulator.log(job["TrainingJobName"]))
    assert archive(emulator, job) == {"rank-0": b"2 11", "rank-1": b"2 11"}
