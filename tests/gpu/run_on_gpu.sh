#!/usr/bin/env bash
# Everything that needs a GPU, in one run and one report: see usage below. Has not run on a GPU yet.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() {
  cat <<'TEXT'
usage: tests/gpu/run_on_gpu.sh [--dry-run] [REPORT]
On a machine with a GPU and a CUDA toolkit: builds the extension with CUDA kernels into the environment, runs the operator tests on the
GPU, compute-sanitizer, the CUDA graph tests and the benchmarks. Writes all output to REPORT (default runs/gpu-report.txt), with the
device's name first and a line for each step last. Exit status: 0 all passed, 1 a step failed, 2 this machine lacks something.
  --dry-run      only says what would be run
Environment:
  PYTHON         with a CUDA build of torch and requirements of the tests (default .venv/bin/python)
  CUDA_HOME      the toolkit (default /usr/local/cuda)
  BGKD_SHAPES    options of the kernel benchmark (default "--tokens 4096,1 --columns 128256,16032,50257 --dtype bf16,fp32")
TEXT
}

dry_run=0
report=runs/gpu-report.txt
for argument in "$@"; do
  case $argument in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=1 ;;
    -*) echo "run_on_gpu.sh: unknown option '$argument', see --help" >&2 && exit 2 ;;
    *) report=$argument ;;
  esac
done

PYTHON=${PYTHON:-.venv/bin/python}
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export PATH=$CUDA_HOME/bin:$PATH
if [[ $PYTHON == */* ]]; then
  PATH=$(dirname "$PYTHON"):$PATH # cmake and ninja are in the environment, too
fi
shapes=${BGKD_SHAPES:---tokens 4096,1 --columns 128256,16032,50257 --dtype bf16,fp32}
build=build/gpu
kernels=$build/benchmarks/kernels/kernel_benchmark
operator_tests=(tests/test_vocab_stats*.py tests/test_fused_loss.py tests/test_loss.py)
# What compute-sanitizer runs is slowed down a hundred times: every kernel on small rows, and the path from torch.
small=(--tokens 3 --columns "1003,20000" --dtype "bf16,fp32" --repetitions 1)
few_tests=(tests/test_fused_loss.py tests/test_vocab_stats.py -k "test_opcheck or rows_of_a_bigger_tensor and 4099")

lacks() {
  echo "run_on_gpu.sh: $1" >&2
  exit 2
}

failed=0
summary=()

# step NAME COMMAND...: a step that fails does not keep the others from being run.
step() {
  local name=$1 result=passed
  shift
  if ((dry_run)); then
    printf '%s: %s\n' "$name" "$*"
    return
  fi
  printf '\n==== %s: %s\n' "$name" "$*"
  if ! "$@"; then
    result=FAILED
    failed=1
  fi
  summary+=("$result  $name")
}

skip() {
  if ((dry_run)); then
    printf '%s: skipped, %s\n' "$1" "$2"
  fi
  summary+=("skipped $1: $2")
}

# shellcheck disable=SC2329  # called by step
facts() {
  nvidia-smi --query-gpu=index,name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit --format=csv
  nvcc --version | tail -n 2
  "$PYTHON" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, "on", torch.cuda.get_device_name())'
  git log -1 --format='commit %h' && git status --short
  date -u +'%F %T UTC'
}

all_steps() {
  step "facts" facts
  # Of this device alone: a quarter of the time.
  local arch=${TORCH_CUDA_ARCH_LIST:-}
  if [[ -z $arch ]] && ! ((dry_run)); then
    arch=$("$PYTHON" -c 'import torch; major, minor = torch.cuda.get_device_capability(); print(f"{major}.{minor}" + "a" * (major >= 9))')
  fi
  step "build of the extension" env BGKD_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" \
    "$PYTHON" -m pip install --no-build-isolation --no-deps --editable .
  step "build of the kernel benchmark" bash -c "cmake -S . -B $build -DBGKD_KERNEL_BENCHMARK=ON \
    -DCMAKE_CUDA_ARCHITECTURES=native -DCMAKE_CUDA_COMPILER='$CUDA_HOME/bin/nvcc' && cmake --build $build --target kernel_benchmark"
  step "whole build" "$PYTHON" -m pytest -q tests/test_cuda_build.py tests/test_ops_refusals.py
  step "operator tests on the GPU" env BGKD_TEST_DEVICE=cuda "$PYTHON" -m pytest -q "${operator_tests[@]}"
  step "CUDA graphs" "$PYTHON" -m pytest -q tests/test_cuda_graphs.py
  if command -v compute-sanitizer > /dev/null; then
    local tool
    for tool in memcheck racecheck initcheck synccheck; do
      step "$tool of the kernels" compute-sanitizer --tool "$tool" --error-exitcode 1 "$kernels" "${small[@]}"
    done
    # Without the caching allocator, so that a read behind a tensor is a read behind an allocation.
    step "memcheck of the operators" env BGKD_TEST_DEVICE=cuda PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool memcheck --error-exitcode 1 --target-processes all "$PYTHON" -m pytest -q "${few_tests[@]}"
  else
    skip "compute-sanitizer" "it is not in CUDA_HOME or on PATH"
  fi
  # Split into words: they are options.
  # shellcheck disable=SC2086
  step "kernel benchmark" "$kernels" $shapes --json "${report%.txt}-kernels.jsonl"
  step "loss benchmark" "$PYTHON" benchmarks/loss.py --device cuda --json "${report%.txt}-losses.json"
  if ! ((dry_run)); then
    printf '\n==== summary\n'
    printf '%s\n' "${summary[@]}"
  fi
  return "$failed"
}

if ((dry_run)); then
  all_steps
  exit
fi
command -v nvidia-smi > /dev/null || lacks "no nvidia-smi: this machine has no driver of an NVIDIA GPU"
[[ -x $CUDA_HOME/bin/nvcc ]] || lacks "no $CUDA_HOME/bin/nvcc: set CUDA_HOME to a toolkit"
command -v "$PYTHON" > /dev/null || lacks "no $PYTHON: set PYTHON, or make the environment as CONTRIBUTING.md says"
"$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' ||
  lacks "the torch of $PYTHON sees no GPU: it must be a CUDA build for this driver"
command -v cmake > /dev/null || lacks "no cmake: pip install cmake ninja"
mkdir -p "$(dirname "$report")"
status=0
# In a subshell, whose status is that of the steps.
(all_steps) 2>&1 | tee "$report" || status=$?
echo "report: $report"
exit "$status"
