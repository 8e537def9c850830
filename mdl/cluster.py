"""What a run has to know of SLURM: whether it was started as it says, and to be queued again."""

from __future__ import annotations

import os
import shutil
import subprocess

from mdl.errors import UserError


def check_launch(world_size: int) -> None:
    """Raises UserError where a launcher started another number of processes than the recipe makes.

    Reads what torchrun and srun tell their processes.
    """
    environment = os.environ
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment  # within a task of srun too
    remedy = (
        "Set trainer.devices to the processes of a node and trainer.num_nodes to the nodes "
        "(slurm/*.sbatch do)."
    )
    if not by_torchrun and "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", 1)))
        # an allocation's shell is a task as well, of another kind
        if environment.get("SLURM_JOB_NAME") not in ("bash", "interactive") and tasks != world_size:
            nodes = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "?"))
            raise UserError(
                f"SLURM started {tasks} tasks on {nodes} nodes; the recipe's trainer.devices and "
                f"trainer.num_nodes make {world_size} processes. {remedy}"
            )
    elif not by_torchrun and int(environment.get("SLURM_NTASKS", 1)) > 1:
        raise UserError(
            f"This job has {environment['SLURM_NTASKS']} tasks, but the command was not started by "
            "srun, so one process runs for all. Start it by srun, as slurm/*.sbatch do."
        )
    elif (launched := int(environment.get("WORLD_SIZE", world_size))) != world_size:
        raise UserError(
            f"The launcher started {launched} processes (WORLD_SIZE), the recipe's "
            f"trainer.devices and trainer.num_nodes make {world_size}. {remedy}"
        )


def was_queued_again() -> bool:
    """Whether SLURM started this job before."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def queue_again() -> str | None:
    """Asks SLURM to start this job again; what it answered, or None where there is no SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if (array := os.environ.get("SLURM_ARRAY_JOB_ID")) is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None or shutil.which("scontrol") is None:
        return None
    asked = subprocess.run(
        ["scontrol", "requeue", job], capture_output=True, text=True, check=False
    )
    return asked.stderr.strip() or f"SLURM starts job {job} again"
