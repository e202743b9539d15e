#!/bin/bash
# Purpose: a run on the GPUs of several machines under Slurm, which goes on by itself after a time limit or a preemption.
# Needs:   lavis-peft on every machine's PATH, and a working directory that all of them share.
# Command: sbatch projects/processes/slurm.sh run.yaml
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the time limit, to the run's processes: longer than a step and a save take.
#SBATCH --signal=USR1@300

# One task is one process of the run; the first task's machine is where the others find it.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# A folder of the job's own, since --resume goes on with the newest run in it. A requeued job keeps its number.
srun --kill-on-bad-exit=1 lavis-peft train --cfg-path "$1" --resume --options run.output_dir="output/$SLURM_JOB_ID"
code=$?

# 75: a signal came and the run is saved. Any other code but 0 is a failure that a second try would only repeat.
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
