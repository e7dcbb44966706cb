#!/usr/bin/env bash
# Submits a training job to Vertex AI, or with --dry_run prints the command that would.
#
#     PROJECT=my-project REGION=us-central1 IMAGE=... DATA=gs://... OUTPUT=gs://... \
#         bash cloud/submit.sh [--dry_run]
#
# SPEC chooses cloud/SPEC.yaml (gpus, machines, tpu, package; default gpus), RECIPE the recipe, JOB
# the name of the job. The spec with all values filled in stays in cloud/jobs/JOB.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${PROJECT:?Set PROJECT to the id of your project.}"
: "${REGION:?Set REGION, as us-central1.}"
: "${IMAGE:?Set IMAGE to the image that was built from cloud/Dockerfile.}"
: "${DATA:?Set DATA to the directory of the records, as gs://bucket/frames.}"
: "${OUTPUT:?Set OUTPUT to the directory of the run, as gs://bucket/run.}"
SPEC="${SPEC:-gpus}"
RECIPE="${RECIPE:-lfnl_netvlad}"
JOB="${JOB:-youtube8m-$SPEC}"
if [ ! -e "cloud/$SPEC.yaml" ]; then
  echo "There is no cloud/$SPEC.yaml: set SPEC to gpus, machines, tpu or package." >&2
  exit 1
fi
if [ ! -e "recipes/$RECIPE.flags" ]; then
  echo "There is no recipes/$RECIPE.flags: check RECIPE." >&2
  exit 1
fi
if [ "$SPEC" = package ]; then
  : "${PACKAGE:?Set PACKAGE to the uploaded archive, as gs://bucket/youtube8m-1.0.tar.gz.}"
fi

config="cloud/jobs/$JOB.yaml"
text="$(<"cloud/$SPEC.yaml")"
for name in IMAGE DATA OUTPUT RECIPE PACKAGE; do
  text="${text//"\${$name}"/"${!name:-}"}"
done
mkdir -p cloud/jobs
printf '%s\n' "$text" > "$config"

command=(gcloud ai custom-jobs create "--project=$PROJECT" "--region=$REGION"
  "--display-name=$JOB" "--config=$config")
if [ "${1:-}" = --dry_run ]; then
  echo "${command[*]}"
else
  "${command[@]}"
fi
