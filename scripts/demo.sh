#!/usr/bin/env bash
# From nothing to a trained model, its GAP and a prediction file, on generated data.
# Results go to the directory demo, or to the one given as argument.
set -euo pipefail
cd "$(dirname "$0")/.."
demo="${1:-demo}"
. scripts/environment.sh requirements.txt

echo "== 1. Generating YouTube-8M records of invented videos"
python make_sample_data.py --output_dir="$demo/data" --overwrite \
  --num_videos=12000 --num_eval_videos=2000 --num_classes=120 --feature_sizes=64,16 \
  --min_frames=20 --max_frames=60

echo "== 2. Training a deep bag of frames"
python train.py --model=DbofModel --train_dir="$demo/run" --start_new_model \
  --train_data_pattern="$demo/data/train*.tfrecord" \
  --num_classes=120 --feature_sizes=64,16 --max_frames=60 \
  --dbof_cluster_size=512 --dbof_hidden_size=256 --num_epochs=8 --base_learning_rate=0.003

echo "== 3. Evaluating it on videos it has not seen"
python eval.py --train_dir="$demo/run" --eval_data_pattern="$demo/data/validate*.tfrecord" \
  --run_once

echo "== 4. Predicting the labels of test videos"
python inference.py --train_dir="$demo/run" --input_data_pattern="$demo/data/test*.tfrecord" \
  --output_file="$demo/predictions.csv"

cat <<END

Done. What there is now:
  $demo/data/               the videos: train*, validate* and test*.tfrecord, vocabulary.csv
  $demo/run/                the model: checkpoints and model_flags.json
  $demo/run/eval/           its metrics: metrics.json
  $demo/predictions.csv     the 20 best classes of each test video
To see the curves: tensorboard --logdir=$demo/run
END
