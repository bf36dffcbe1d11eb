#!/bin/bash
# Several nodes under SLURM, one launcher on each:
#     sbatch configs/slurm.sh translation/run_translation.py ... --resume_from_checkpoint latest
# CONFIG chooses another launch file, as in `CONFIG=configs/fsdp2.yaml sbatch configs/slurm.sh ...`.
#SBATCH --job-name=ea_hf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

config=${CONFIG:-configs/two_nodes.yaml}
# Read whole: a pipe to `head` would end `scontrol` with SIGPIPE, and `pipefail` this script with it.
hostnames=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
main_process_ip=${hostnames%%$'\n'*}
# The same port on all nodes, and another one for another job.
main_process_port=$((20000 + SLURM_JOB_ID % 20000))
num_processes=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))

# Only within `srun` a node knows its rank.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launch \
  --config_file "$config" --num_machines "$SLURM_NNODES" --num_processes "$num_processes" \
  --main_process_ip "$main_process_ip" --main_process_port "$main_process_port" "$@"
