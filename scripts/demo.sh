#!/usr/bin/env bash
# From nothing to a trained model, its GAP and a prediction file, on generated data.
# Results go to the directory demo, or to the one given as argument.
set -euo pipefail
demo="$(realpath -m "${1:-$(dirname "$0")/../demo}")"
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt

echo "== 1. Generating YouTube-8M records of invented videos"
python make_sample_data.py --output_dir="$demo/data" --overwrite \
  --num_videos=12000 --num_eval_videos=2000 --num_classes=120 --feature_sizes=64,16 \
  --min_frames=20 --max_frames=60

echo "== 2. Training a mixture of experts on the mean of the frames, the simple way"
python train.py --flagfile=recipes/small_moe.flags --train_dir="$demo/small_moe" \
  --train_data_pattern="$demo/data/train*.tfrecord" --start_new_model --log_steps=100
python eval.py --train_dir="$demo/small_moe" \
  --eval_data_pattern="$demo/data/validate*.tfrecord" --run_once

echo "== 3. Training a small LFNL-NetVLAD on the same data"
python train.py --flagfile=recipes/small_lfnl_netvlad.flags --train_dir="$demo/small_lfnl_netvlad" \
  --train_data_pattern="$demo/data/train*.tfrecord" --start_new_model --log_steps=50
python eval.py --train_dir="$demo/small_lfnl_netvlad" \
  --eval_data_pattern="$demo/data/validate*.tfrecord" --run_once

echo "== 4. Predicting the labels of test videos"
python inference.py --train_dir="$demo/small_lfnl_netvlad" \
  --input_data_pattern="$demo/data/test*.tfrecord" --output_file="$demo/predictions.csv"

cat <<END

Done. What there is now:
  $demo/data/                   the videos: train*, validate*, test*.tfrecord, vocabulary.csv
  $demo/small_lfnl_netvlad/     the model: checkpoints and model_flags.json; eval/metrics.json
  $demo/small_moe/              the simple model, likewise
  $demo/predictions.csv         the 20 best classes of each test video
To see the curves: tensorboard --logdir=$demo
END
