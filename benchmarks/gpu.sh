#!/usr/bin/env bash
# What README and docs say of a GPU, on one card, a step at a time:
#
#     benchmarks/gpu.sh tests               # it computes and trains as a CPU does
#     benchmarks/gpu.sh eager OUT           # cost of an HNC step of ResNet-50: OUT/eager.md and .csv
#     benchmarks/gpu.sh compiled OUT        # the same compiled
#     benchmarks/gpu.sh cifar OUT           # of cifar_resnet110, both
#     benchmarks/gpu.sh run OUT DATA        # the paper's schedule with HNC: OUT/cifar_resnet56, seconds in result.json
#
# Flags behind these go to pytest, step_cost.py or train.py, and win. `run` is stopped after
# 8 minutes, keeps a checkpoint, and goes on when it is started again. DATA is a local folder of CIFAR-100's parquet files with
# the columns img and fine_label, as the Hub has them.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
step=${1:?expected a step: tests, eager, compiled, cifar or run}
shift
if [ "$step" = tests ]; then
    exec python -m pytest -n 0 tests/training/test_cuda.py "$@"
fi
out=$(cd "$here" && realpath -m "${1:?expected OUT, a folder}")
shift
cost=(python benchmarks/step_cost.py --dtype bfloat16 --variants mse full --memory-runs 1 --out "$out/$step")
case $step in
eager | compiled)
    exec "${cost[@]}" --model resnet50 --classes 1000 21843 --batch-size 256 --pairs 30 --mode "$step" "$@"
    ;;
cifar)
    exec "${cost[@]}" --model cifar_resnet110 --classes 100 --topk 10 --img-size 32 --batch-size 128 --pairs 30 \
        --mode eager compiled "$@"
    ;;
run)
    data=$(cd "$here" && realpath "${1:?expected DATA, a folder of parquet files}")
    shift
    timeout --preserve-status --signal TERM 8m python train.py -c hparams/cifar100.yaml --dataset "hfds/$data" \
        --input-key img --target-key fine_label --hnc kd --hnc-weight 0.003 --hnc-topk 10 --data-in-memory --workers 0 \
        --torchcompile inductor --torchcompile-mode reduce-overhead --amp --amp-dtype bfloat16 --channels-last --no-report \
        --cam-images 0 --checkpoint-hist 1 --checkpoint-interval 2m --val-interval 41 --output "$out" \
        --experiment cifar_resnet56 --resume auto "$@"
    ;;
*)
    echo "gpu.sh: $step: expected tests, eager, compiled, cifar or run." >&2
    exit 2
    ;;
esac
