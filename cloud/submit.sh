#!/usr/bin/env bash
# Submits a training job to Vertex AI. With --dry_run, only prints the command that would submit it.
#
#     PROJECT=my-project REGION=us-central1 IMAGE=... DATA=gs://... OUTPUT=gs://... \
#         bash cloud/submit.sh [--dry_run]
#
# SPEC selects cloud/SPEC.yaml (gpus, machines, tpu or package; default gpus), RECIPE the recipe
# (default lfnl_netvlad), and JOB the name of the job. The completed spec is kept in
# cloud/jobs/JOB.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${PROJECT:?Set PROJECT to the ID of your project.}"
: "${REGION:?Set REGION, for example us-central1.}"
: "${IMAGE:?Set IMAGE to the image built from cloud/Dockerfile.}"
: "${DATA:?Set DATA to the directory of the records, for example gs://bucket/frames.}"
: "${OUTPUT:?Set OUTPUT to the directory of the run, for example gs://bucket/run.}"
SPEC="${SPEC:-gpus}"
RECIPE="${RECIPE:-lfnl_netvlad}"
JOB="${JOB:-youtube8m-$SPEC}"
if [ ! -e "cloud/$SPEC.yaml" ]; then
  echo "cloud/$SPEC.yaml does not exist. Set SPEC to gpus, machines, tpu or package." >&2
  exit 1
fi
if [ ! -e "recipes/$RECIPE.flags" ]; then
  echo "recipes/$RECIPE.flags does not exist. Set RECIPE to the name of a recipe." >&2
  exit 1
fi
if [ "$SPEC" = package ]; then
  : "${PACKAGE:?Set PACKAGE to the uploaded archive, for example gs://bucket/youtube8m-1.0.0.tar.gz.}"
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
