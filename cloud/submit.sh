#!/usr/bin/env bash
# Prints the command that submits a training job to Vertex AI. With --submit, runs it instead.
#
#     PROJECT=my-project REGION=us-central1 IMAGE=... DATA=gs://... OUTPUT=gs://... \
#         bash cloud/submit.sh [--submit]
#
# SPEC selects cloud/SPEC.yaml (gpus, machines, tpu or package; default gpus), RECIPE the recipe
# (default lfnl_netvlad), PACKAGE the archive for SPEC=package, and JOB the name of the job. The
# completed spec is kept in cloud/jobs/JOB.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."
LC_ALL=C

fail() {
  echo "cloud/submit.sh: error: $*" >&2
  exit 1
}

# check NAME PATTERN MEANING: rejects a variable whose value is not as expected.
check() {
  [[ "${!1:-}" =~ ^($2)$ ]] || fail "Set $1 to $3. Received: '${!1:-}'"
}

# fill NAME PATTERN MEANING: replaces the placeholder of a variable in the spec.
fill() {
  if [[ "$text" != *"\${$1}"* ]]; then
    [ -z "${!1:-}" ] || fail "cloud/$SPEC.yaml does not use $1. Unset it, or choose another SPEC."
    return
  fi
  check "$@"
  text="${text//"\${$1}"/"${!1%/}"}"
}

case "$*" in
  "" | --submit) ;;
  --help | -h) exec sed -n '2,/^set/s/^# \{0,1\}//p' cloud/submit.sh ;;
  *) fail "unknown arguments: $*. The only one is --submit; without it, the command is printed." ;;
esac

SPEC="${SPEC:-gpus}"
RECIPE="${RECIPE:-}"
JOB="${JOB:-youtube8m-$SPEC}"
check SPEC 'gpus|machines|tpu|package' "gpus, machines, tpu or package"
check JOB '[A-Za-z0-9_-]+' "a name of letters, digits, - and _"
check PROJECT '[a-z0-9.:-]+' "the ID of your project"
check REGION '[a-z0-9-]+' "a region, for example us-central1"

text="$(<"cloud/$SPEC.yaml")"
[ "$SPEC" = package ] || RECIPE="${RECIPE:-lfnl_netvlad}"
recipes="$(cd recipes && printf '%s|' *.flags)"
path='gs://[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9._=+@~-]+)*'
fill IMAGE '[A-Za-z0-9._:@/-]+' "the image built from cloud/Dockerfile"
fill DATA "$path/?" "the directory of the records, for example gs://bucket/frames"
fill OUTPUT "$path/?" "the directory of the run, for example gs://bucket/run"
fill RECIPE "${recipes//.flags/}" "the name of a recipe, for example lfnl_netvlad"
fill PACKAGE "$path" "the uploaded archive, for example gs://bucket/youtube8m-1.0.0.tar.gz"

mkdir -p cloud/jobs
printf '%s\n' "$text" > "cloud/jobs/$JOB.yaml"
command=(gcloud ai custom-jobs create "--project=$PROJECT" "--region=$REGION"
  "--display-name=$JOB" "--config=cloud/jobs/$JOB.yaml")
if [ "$*" = --submit ]; then
  "${command[@]}"
else
  echo "${command[*]}"
fi
