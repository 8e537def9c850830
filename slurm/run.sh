#!/bin/bash
# The body of the job files: starts mdl.fit on all tasks of a job, and looks at how it ended.
set -u
status=0
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m mdl.fit "$@" \
  trainer.num_nodes="$SLURM_JOB_NUM_NODES" trainer.devices="$SLURM_NTASKS_PER_NODE" || status=$?
# 0: done; 2: a person has to mend it; 75: it stopped when it was told to, and has been queued
case $status in
  0 | 2 | 75) exit "$status" ;;
esac
if [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then
  echo "a process was lost (status $status): the job is queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
