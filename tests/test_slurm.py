"""run_grid.sh under a real Slurm: a cluster of one node, started here, on the loopback interface alone."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from grid import MARK, processes, wait_until

from store.run import RunFolder

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "sinfo")
MISSING = [tool for tool in TOOLS if not shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not here (Debian: slurm-wlm, munge): no {', '.join(MISSING)}"),
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can start a Slurm cluster")]

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=3 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """munged, slurmctld and slurmd; `environment` is for the commands of users. `mark` is in that of each process."""

    def __init__(self, folder: Path, mark: str):
        self.folder, self.mark = folder, mark
        self.environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", MARK: mark,
                            "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons = []

    def start(self) -> None:
        keys = self.folder / "munge"
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir()
        (keys / "key").write_bytes(os.urandom(128))
        (keys / "key").chmod(0o400)
        munge = pwd.getpwnam("munge")
        for path in (keys, keys / "key"):
            os.chown(path, munge.pw_uid, munge.pw_gid)
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(
            host=socket.gethostname().split(".")[0], folder=self.folder, ports=free_ports(2)))
        self.daemon("munged", "--foreground", f"--socket={keys}/socket", f"--key-file={keys}/key", "--num-threads=2",
                    f"--pid-file={keys}/pid", f"--seed-file={keys}/seed", f"--log-file={keys}/log",
                    user=munge.pw_uid, group=munge.pw_gid, extra_groups=[])
        wait_until((keys / "socket").exists)
        self.daemon("slurmctld", "-D", "-i")
        self.daemon("slurmd", "-D")
        wait_until(lambda: self.run("sinfo", "--noheader", "--format=%T", check=False).strip() == "idle")

    def daemon(self, *command, **options) -> None:
        with open(self.folder / f"{command[0]}.out", "wb") as output:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL,
                                                 stdout=output, stderr=subprocess.STDOUT, **options))

    def run(self, *command, check: bool = True) -> str:
        done = subprocess.run([*map(str, command)], env=self.environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        return self.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}").strip()

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in processes(self.mark):  # steps and jobs, had the test failed
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def cluster():
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:  # not tmp_path, where the user munge cannot look
        Path(folder).chmod(0o755)
        cluster = Cluster(Path(folder), uuid.uuid4().hex)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def test_a_task_of_an_array_is_cancelled_and_requeued_and_every_run_is_trained_once(cluster, image_folder, tmp_path):
    runs, epochs = tmp_path / "runs", 60
    cluster.environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    job = cluster.run("sbatch", "--parsable", "--array=1-3", f"--output={tmp_path}/%a.log", "run_grid.sh", "mlp",
                      "--batch_size", 32, "--learning_rate", 0.001, "--drop_rate", 0, "--seed", 0, 1, 2, "--num_epochs",
                      epochs, "--data_dir", image_folder, "--runs_dir", runs).strip()

    def log(task: int) -> list[str]:
        path = tmp_path / f"{task}.log"
        return path.read_text().splitlines() if path.exists() else []

    def trained(task: int) -> int:
        return sum("  epoch " in line for line in log(task))

    wait_until(lambda: trained(2) >= 3)
    cluster.run("scancel", f"{job}_2")
    wait_until(lambda: cluster.state(f"{job}_2") == "CANCELLED")
    before = trained(2)
    assert before < epochs, "it had finished its run before it was cancelled"
    assert not any("epoch 1/" in line for line in log(2)[2:]), "it had begun another run"
    cluster.run("scontrol", "requeue", f"{job}_2")
    # Slurm would wait for two minutes; in the second of the cancellation it refuses the task's credential as revoked.
    cluster.run("scontrol", "update", f"JobId={job}_2", "StartTime=now+3")
    wait_until(lambda: cluster.state(job).split() == ["COMPLETED"] * 3, seconds=120)

    assert sorted(folder.name for folder in runs.glob("mlp/*") if RunFolder(folder).finished(epochs)) == [
        f"32_0.001_0.0_False_False_seed{seed}" for seed in (0, 1, 2)]
    told = Counter(line.split("  train ")[0].split(" ", 1)[1] for task in (1, 2, 3) for line in log(task)
                   if "  epoch " in line)
    assert set(told.values()) == {1} and len(told) >= 3 * epochs - 1  # an epoch may be saved and not told
    for task in (1, 2, 3):
        assert any(line.startswith("3 runs: 3 finished") for line in log(task)), task
    assert not list(runs.glob("**/*.tmp"))
