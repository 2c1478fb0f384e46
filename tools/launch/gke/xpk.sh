#!/bin/bash
# Trains on TPU slices of a GKE cluster through xpk (pip install xpk), which writes the JobSet itself:
#
#   VLM3_DATA=gs://BUCKET/data CLUSTER=my-cluster IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/vlm3:TAG \
#     tools/launch/gke/xpk.sh --config=depth --workdir=gs://BUCKET/runs/depth --config.mesh.replica=2 \
#       --config.data.rows=128 --config.train.accumulation=4
#
# TPU (default v5p-128: 64 chips) and SLICES (default 2) say on what, VLM3_DATA (gs://BUCKET/data) where the data lie;
# NAME (default vlm3) is the workload's. The pods' service account must be allowed to use the bucket. The same command
# with another NAME goes on.
set -euo pipefail

: "${CLUSTER:?the GKE cluster}" "${IMAGE:?an image with vlm3 installed}" "${VLM3_DATA:?where the data lie}"
# xpk signals the shell that it starts, so that one gives way to vlm3. 75 (try again): stopped by a signal, and saved;
# with --restart-on-user-code-failure it makes JobSet start all processes again.
printf -v command '%q ' exec env VLM3_DATA="$VLM3_DATA" vlm3 train --stopped-code=75 "$@"
exec xpk workload create --cluster="$CLUSTER" --workload="${NAME:-vlm3}" --docker-image="$IMAGE" \
  --tpu-type="${TPU:-v5p-128}" --num-slices="${SLICES:-2}" --max-restarts="${RESTARTS:-100}" \
  --restart-on-user-code-failure --termination-grace-period-seconds=300 --command="${command% }"
