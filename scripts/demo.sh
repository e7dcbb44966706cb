#!/usr/bin/env bash
# From nothing to a trained model, its GAP and a prediction file, on generated data.
# Results go to the directory demo, or to the one given as argument.
set -euo pipefail
if [ $# -gt 1 ] || [[ "${1:-}" == -* ]]; then
  echo "usage: bash scripts/demo.sh [DIRECTORY]" >&2
  exit 2
fi
demo="$(realpath -m "${1:-$(dirname "$0")/../demo}")"
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt

echo "== 1. Generating synthetic videos in the format of YouTube-8M"
python make_sample_data.py --output_dir="$demo/data" --overwrite \
  --num_videos=12000 --num_eval_videos=2000 --num_classes=120 --feature_sizes=64,16 \
  --min_frames=20 --max_frames=60

echo "== 2. Training a mixture of experts on the mean of the frames"
python train.py --flagfile=recipes/small_moe.flags --train_dir="$demo/small_moe" \
  --train_data_pattern="$demo/data/train*.tfrecord" --start_new_model --log_steps=100
python eval.py --train_dir="$demo/small_moe" \
  --eval_data_pattern="$demo/data/validate*.tfrecord" --run_once

echo "== 3. Training a small LFNL-NetVLAD on the same data"
python train.py --flagfile=recipes/small_lfnl_netvlad.flags --train_dir="$demo/small_lfnl_netvlad" \
  --train_data_pattern="$demo/data/train*.tfrecord" --start_new_model --log_steps=50
python eval.py --train_dir="$demo/small_lfnl_netvlad" \
  --eval_data_pattern="$demo/data/validate*.tfrecord" --run_once

echo "== 4. Averaging its last checkpoints, and recomputing their batch normalization statistics"
rm -rf "$demo/averaged" "$demo/exported"
python average_checkpoints.py --train_dir="$demo/small_lfnl_netvlad" --num_last=3 \
  --train_data_pattern="$demo/data/train*.tfrecord" --batch_norm_batches=80 \
  --output_dir="$demo/averaged"

echo "== 5. Exporting both models as one graph in bfloat16, and evaluating what was exported"
python export_model.py --train_dirs="$demo/averaged,$demo/small_moe" --weights=4,1 \
  --class_names="$demo/data/vocabulary.csv" --output_dir="$demo/exported"
python eval.py --exported_model="$demo/exported" \
  --eval_data_pattern="$demo/data/validate*.tfrecord" --run_once

echo "== 6. Predicting the labels of test videos with it"
python inference.py --exported_model="$demo/exported" \
  --input_data_pattern="$demo/data/test*.tfrecord" --output_file="$demo/predictions.csv"

cat <<END

Done. Results:
  $demo/data/                   the videos: train*, validate*, test*.tfrecord, vocabulary.csv, dataset.json
  $demo/small_lfnl_netvlad/     the model: checkpoints and model_flags.json; eval/metrics.json
  $demo/small_moe/              the simple model, with the same files
  $demo/averaged/               the mean of the model's last checkpoints
  $demo/exported/               both in one graph, which needs only TensorFlow
  $demo/predictions.csv         the 20 best classes of each test video, predicted by that graph
To see both runs on one page, after pip install '.[report]':
  python report.py --train_dirs=$demo/small_moe,$demo/small_lfnl_netvlad --eval_data_pattern='$demo/data/validate*.tfrecord' --output_file=$demo/report.html
END
