#!/usr/bin/env bash
# Everything that README's GPU rows need, on one card: the cost of a HNC step, then a whole run. Meant to take
# under 8 minutes; not measured yet.
#
#     benchmarks/gpu.sh DATA OUT [flags of train.py]
#
# DATA is a local folder of CIFAR-100's parquet files with the columns img and fine_label, as the Hub has them. Tables go
# to OUT/step_cost.md and .csv, the run to OUT/cifar_resnet56, its seconds are in result.json.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$(realpath "$1") out=$(realpath -m "$2")
shift 2

python benchmarks/step_cost.py --preset gpu --variants mse --memory-runs 1 --out "$out/step_cost"
python train.py -c hparams/cifar100.yaml --dataset "hfds/$data" --input-key img --target-key fine_label \
    --hnc mse --hnc-weight 0.001 --hnc-topk 10 --data-in-memory --torchcompile inductor --amp --amp-dtype bfloat16 \
    --channels-last --no-report --cam-images 0 --checkpoint-hist 1 --output "$out" --experiment cifar_resnet56 "$@"
python -c "import json, sys; r = json.load(open(sys.argv[1])); print(r['seconds'], 'seconds', r['final'])" \
    "$out/cifar_resnet56/result.json"
