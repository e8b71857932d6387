#!/usr/bin/env bash
#SBATCH --job-name=raykd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --output=raykd-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:TERM@90
#
# A Ray cluster inside of one Slurm job, and one command on it:
#
#     sbatch cluster/slurm.sh raykd run experiments/recipes/cifar10.yaml --store /shared/raykd
#
# 90 seconds before the time is over, Slurm sends SIGTERM to this script, which passes it on and puts
# the job back into the queue; the same command then goes on where it was. The store, the checkout
# and this folder must be on a file system that all nodes share.
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "slurm.sh: say what to run: sbatch cluster/slurm.sh raykd run FILE --store DIR" >&2
  exit 2
fi

# The environment in which raykd was installed; sbatch starts with the one that it was called in.
if [ -n "${RAYKD_VENV:-}" ]; then
  # shellcheck disable=SC1091
  . "$RAYKD_VENV/bin/activate"
fi

# One token for all nodes of this job; others on these machines do not have it.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID"
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
export RAY_USAGE_STATS_ENABLED=0

# Ports and a folder of this job, as there may be another one on the same node. Ray's sockets are in
# that folder, and their names must be short.
RAYKD_PORT=$((20000 + SLURM_JOB_ID % 4000 * 4))
RAYKD_IP=${RAYKD_IP:-$(hostname -I | awk '{print $1}')}  # of the network between the nodes
RAYKD_TMP=/tmp/raykd-$SLURM_JOB_ID
RAYKD_PATIENCE=${RAYKD_PATIENCE:-300}  # seconds for Ray's head to start
export RAYKD_PORT RAYKD_IP RAYKD_TMP RAYKD_PATIENCE

# One task on each node: Ray's head on the first, which is this one, workers on the others. A node
# that is lost takes only its own task along.
# shellcheck disable=SC2016
node='
own="--num-cpus=$SLURM_CPUS_PER_TASK --disable-usage-stats --block"
# Not exec: Ray keeps its files in the same folder on every node, and each node removes its own.
start() {
  trap "kill \"\$!\" 2> /dev/null" TERM
  ray start "$@" &
  local status=0
  wait "$!" || status=$?
  wait "$!" || status=$?  # the first one ends with the signal
  rm -rf "$RAYKD_TMP"
  exit "$status"
}
if [ "$SLURM_PROCID" -eq 0 ]; then
  start --head --node-ip-address="$RAYKD_IP" --port="$RAYKD_PORT" \
    --dashboard-host=127.0.0.1 --dashboard-port=$((RAYKD_PORT + 1)) \
    --ray-client-server-port=$((RAYKD_PORT + 2)) --temp-dir="$RAYKD_TMP" $own
fi
until ray health-check --address "$RAYKD_IP:$RAYKD_PORT" > /dev/null 2>&1; do
  [ "$SECONDS" -lt "$RAYKD_PATIENCE" ] || { echo "slurm.sh: no head at $RAYKD_IP:$RAYKD_PORT" >&2; exit 1; }
  sleep 2
done
start --address="$RAYKD_IP:$RAYKD_PORT" $own
'
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --no-kill \
  --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 bash -c "$node" &
cluster=$!

work=
requeue=
finish() {
  kill "$cluster" 2> /dev/null || true
  wait "$cluster" 2> /dev/null || true
  rm -rf "$RAY_AUTH_TOKEN_PATH" "$RAYKD_TMP"
}
stop() {
  requeue=yes
  if [ -n "$work" ]; then kill -TERM "$work" 2> /dev/null || true; fi
}
trap finish EXIT
trap stop TERM

# All nodes, or those that came within five minutes.
export RAY_ADDRESS="$RAYKD_IP:$RAYKD_PORT"
until ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1; do
  if [ "$SECONDS" -gt "$RAYKD_PATIENCE" ] || ! kill -0 "$cluster" 2> /dev/null; then
    echo "slurm.sh: Ray's head did not start on this node; what it said is above" >&2
    exit 1
  fi
  sleep 2
done
python - "$SLURM_NNODES" << 'END'
import sys
import time

import ray

wanted, deadline = int(sys.argv[1]), time.monotonic() + 300
ray.init(logging_level="ERROR", log_to_driver=False)
while (found := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        break
    time.sleep(2)
print(f"slurm.sh: {found} of {wanted} nodes", flush=True)
END

status=143
if [ -z "$requeue" ]; then
  status=0
  "$@" &
  work=$!
  wait "$work" || status=$?
  if [ -n "$requeue" ]; then
    status=0  # the first wait ended with the signal, not with the work
    wait "$work" || status=$?
  fi
fi
if [ -n "$requeue" ] && [ "$status" -ne 0 ]; then
  echo "slurm.sh: stopped (status $status), and back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
