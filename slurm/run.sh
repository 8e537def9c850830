#!/bin/bash
# The body of the job files: starts mdl.fit on all tasks of a job, and looks at how it ended.
set -u
status=0
# tasks end by themselves when one of them does, with its status; what does not, after --wait seconds
srun --kill-on-bad-exit=0 --wait=180 "${PYTHON:-python}" -m mdl.fit "$@" \
  trainer.num_nodes="$SLURM_JOB_NUM_NODES" trainer.devices="$SLURM_NTASKS_PER_NODE" || status=$?
# 0: done; 2: a person has to mend it; 75: it stopped when it was told to, and has been queued
case $status in
  0 | 2 | 75) exit "$status" ;;
esac
# the count is of all times that the job was queued again, also when its time was over
if [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then
  echo "a process was lost (status $status): the job is queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
