"""A real SLURM on this machine: a controller and nodes of one CPU each, on loopback.

Needs root and Debian's slurm-wlm. Configuration, state, logs and process ids lie in one folder;
outside it only the nodes' names are added to the hosts file, and taken out again.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

HOSTS = Path("/etc/hosts")
_ENDING = 15  # seconds that a requeued job's processes have to end, KillWait and some more
MARK = "  # a test's SLURM node"


def missing() -> str | None:
    """Why no cluster can be had here, if so."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        return "needs slurm-wlm and munge: make test-cluster installs them where it may"
    if Path("/etc/slurm/slurm.conf").exists():
        return "SLURM is configured on this machine: nothing is started beside it"
    return None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


class LocalSlurm:
    """Started by `with`; `environment` is what its commands need."""

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.folder, self.nodes = folder, nodes
        self.conf = folder / "slurm.conf"
        self.environment = os.environ | {"SLURM_CONF": str(self.conf)}

    def __enter__(self) -> LocalSlurm:
        try:
            return self._up()
        except BaseException:
            self.__exit__()
            raise

    def _up(self) -> LocalSlurm:
        host = socket.gethostname()
        names = [f"n{number}" for number in range(1, self.nodes + 1)]
        # torch.distributed reaches the first node by its name
        with HOSTS.open("a") as hosts:
            hosts.writelines(f"127.0.0.1 {name}{MARK}\n" for name in names)
        free = _free_ports(1 + self.nodes)
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 "
            "RealMemory=4000 State=UNKNOWN"
            for name, port in zip(names, free[1:], strict=True)
        )
        self.conf.write_text(
            f"""ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=600
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
        )
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._start(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )
        self._start("slurmctld", "-f", str(self.conf))
        for name in names:
            self._start("slurmd", "-f", str(self.conf), "-N", name)
        for _ in range(60):
            if "idle" in self.run("sinfo", "-h", "-o", "%T", check=False).split():
                return self
            time.sleep(0.5)
        raise RuntimeError(f"no node came up; logs lie in {self.folder}")

    def __exit__(self, *error: object) -> None:
        self.run("scancel", "--me", check=False)
        files = [*self.folder.glob("slurmd-*.pid"), *self.folder.glob("*.pid")]
        daemons = [int(file.read_text()) for file in files if file.read_text().strip()]
        for number in (15, 9):  # a node that still cleans up after a job ignores the first
            for process in daemons:
                try:
                    os.kill(process, number)
                except ProcessLookupError:
                    pass
            time.sleep(2)
        kept = [line for line in HOSTS.read_text().splitlines() if not line.endswith(MARK)]
        HOSTS.write_text("\n".join(kept) + "\n")

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def submit(self, *words: str) -> str:
        """The number of the job."""
        return self.run("sbatch", "--parsable", *words).strip()

    def state(self, job: str) -> str:
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T", check=False).strip()

    def wait(self, job: str, seconds: float = 240) -> str:
        """The state in which the job ends."""
        pending = 0
        for _ in range(int(seconds * 2)):
            state = self.state(job)
            if state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", ""):
                return state
            pending = pending + 1 if state == "PENDING" else 0
            # a requeued job waits for two minutes; a start while the old one's script still ends
            # would be taken for ended with it
            if pending == 2 * _ENDING:
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            time.sleep(0.5)
        return f"{self.state(job)} after {seconds} s"

    def _start(self, *command: str) -> None:
        subprocess.run(command, check=True, env=self.environment, capture_output=True)
