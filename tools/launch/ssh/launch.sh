#!/bin/bash
# Trains on a list of hosts through ssh, a process on each; what follows `--` is run there with the flags that say which
# process it is:
#
#   tools/launch/ssh/launch.sh host1 host2 -- env VLM3_DATA=/shared/data \
#     vlm3 train --config=depth --workdir=/shared/runs/depth
#
# The hosts (of 8 devices here) need the same installation, and a workdir and data that all see; host1 is process 0.
# Output comes back with the host's name before every line. SIGTERM and Ctrl-C here reach every process: the run saves
# and ends, and the same command goes on. When a process fails, the others end by themselves within a minute; the exit
# code is the highest, but 2 (do not try again) if any process ends with that. PORT (default 8476) must be free on
# host1; DIRECTORY (default: this one) is where the command runs.
set -u

hosts=()
while (($#)) && [[ $1 != -- ]]; do
  hosts+=("$1")
  shift
done
if (($# < 2 || ${#hosts[@]} == 0)); then
  echo "usage: launch.sh HOST... -- vlm3 train ..." >&2
  exit 2
fi
shift

address=${hosts[0]#*@}:${PORT:-8476}
directory=${DIRECTORY:-$PWD}
# Names this run on the hosts, where the processes are found again to be stopped.
run=vlm3-$(date +%s)-$$

remote() {  # HOST COMMAND: `exec`, so that the number noted is that of the process itself
  ssh -o BatchMode=yes -o ServerAliveInterval=15 "$1" "$2"
}

# shellcheck disable=SC2317  # called by the trap
stop() {
  interrupted=1
  for number in "${!hosts[@]}"; do
    remote "${hosts[number]}" "kill -TERM \$(cat /tmp/$run-$number.pid)" &
  done
}
trap stop TERM INT

processes=()
for number in "${!hosts[@]}"; do
  printf -v command '%q ' "$@" --coordinator="$address" --processes="${#hosts[@]}" --process="$number"
  printf -v place '%q' "$directory"
  noted=/tmp/$run-$number.pid
  (
    # Ctrl-C here reaches these too, and must not end the ssh that carries the last words.
    trap '' INT
    set -o pipefail
    remote "${hosts[number]}" "cd $place && echo \$\$ >$noted && exec $command" 2>&1 | sed -u "s/^/${hosts[number]}: /"
  ) &
  processes+=($!)
done

failed=0
for each in "${!processes[@]}"; do
  # A signal ends `wait`, not the process that it waits for.
  interrupted=1
  while ((interrupted)); do
    interrupted=0
    wait "${processes[each]}"
    code=$?
  done
  if ((code)); then
    echo "launch.sh: process $each on ${hosts[each]}: exit code $code" >&2
    # Where one process ends with 2, the runtime aborts the others.
    failed=$((failed == 2 || code == 2 ? 2 : failed > code ? failed : code))
  fi
  remote "${hosts[each]}" "rm -f /tmp/$run-$each.pid"
done
exit "$failed"
