#!/bin/bash
# Runs train.sbatch on a SLURM cluster that exists for that long: this machine as its one node, two tasks on CPUs.
#
#   apt-get install slurm-wlm munge; tools/launch/slurm/try_locally.sh [DIR]
#
# In the middle the tasks get SIGTERM, as before a time limit: they save, the job requeues itself and goes on. Needs
# root (SLURM's daemons), `vlm3` on PATH with its extra "demo", and writes below DIR only (default: a temporary folder).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$(mktemp -d)}
mkdir -p "$dir"/{munge,state,spool}
cd "$dir"
export SLURM_CONF=$dir/slurm.conf JAX_PLATFORMS=cpu
STEPS=40

stop() {
  for name in slurmd slurmctld munged; do
    [[ -f $dir/$name.pid ]] && kill "$(cat "$dir/$name.pid")" 2>/dev/null
  done
  return 0
}
trap stop EXIT

wait_for() {  # SECONDS COMMAND...: until the command succeeds
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { echo "gave up waiting for: $*" >&2; exit 1; }
    sleep 0.5
  done
}

head -c 1024 /dev/urandom >munge.key
chmod 700 munge && chmod 400 munge.key
munged --force --socket="$dir/munge/socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
  --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
cat >slurm.conf <<EOF
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
NodeName=localhost NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:2
EOF
slurmctld
slurmd
wait_for 30 sh -c "sinfo -h -o %t | grep -q idle"
sinfo

for part in "train 96 0" "held_out 16 1000000"; do
  read -r name count first <<<"$part"
  vlm3 data build --out="runs/demo/data/$name" --count="$count" --first="$first" --width=128 --height=96 --focal=128
done

log=$dir/log
job=$(sbatch --parsable --ntasks-per-node=2 --output="$log" "$here/train.sbatch" --config=demo --workdir="$dir/run" \
  --config.train.max_steps=$STEPS --config.train.log_every=5 --config.eval.loss_batches=0 --config.data.reach=16)
echo "submitted job $job"
wait_for 600 grep -q '"step": 5,' run/metrics.jsonl
squeue --steps
scancel --signal=TERM "$job"
wait_for 120 grep -q "back into the queue" "$log"
scontrol show job "$job" | grep -E "JobState|Restarts"
# SLURM starts a requeued job after two minutes; this one need not wait.
wait_for 60 scontrol update JobId="$job" StartTime=now
wait_for 600 grep -q "the run is complete" "$log"
cat "$log"
