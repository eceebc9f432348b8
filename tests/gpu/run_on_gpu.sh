#!/usr/bin/env bash
# Everything that needs a GPU, in one run and one report: see usage below. Has not run on a GPU yet.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() {
  cat <<'TEXT'
usage: tests/gpu/run_on_gpu.sh [--dry-run] [REPORT]
On a machine with a GPU and a CUDA toolkit, in less than 8 minutes: builds the extension with CUDA kernels into the environment, for this
GPU alone; then, side by side, the operator tests on the GPU against float64, the comparison of its bits with the PTX executor, two steps
of distillation, the CUDA graph tests and compute-sanitizer; then, one after the other, the benchmarks. Writes all output to REPORT
(default runs/gpu-report.txt), with the device's name first and a line with its seconds for each step last. Every step has a limit, and
so has the whole: the report is written in any case. Exit status: 0 all passed, 1 a step failed, 2 this machine lacks something.
  --dry-run      only says what would be run
Environment:
  PYTHON         with a CUDA build of torch and requirements of the tests (default .venv/bin/python)
  CUDA_HOME      the toolkit (default /usr/local/cuda)
  BGKD_SECONDS   of the whole run (default 470)
  BGKD_SHAPES    options of the kernel benchmark (default "--tokens 4096,1 --columns 128256,16032,50257 --dtype bf16,fp32")
  BGKD_LOSSES    options of the loss benchmark (default "--tokens 4096 --vocab 128256 --dtype bf16 --repetitions 10")
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
export PYTHON
shapes=${BGKD_SHAPES:---tokens 4096,1 --columns 128256,16032,50257 --dtype bf16,fp32}
losses=${BGKD_LOSSES:---tokens 4096 --vocab 128256 --dtype bf16 --repetitions 10}
budget=${BGKD_SECONDS:-470}
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
names=()
pids=()
logs= # the folder of the steps' output

# start NAME LIMIT COMMAND...: beside the steps that run already. Nothing runs longer than LIMIT seconds, or than what is left.
start() {
  local name=$1 limit=$2
  shift 2
  if ((dry_run)); then
    printf '%s (at most %s s): %s\n' "$name" "$limit" "$*"
    return
  fi
  local left=$((budget - SECONDS)) log=$logs/${#names[@]}
  if ((left < limit)); then
    limit=$left
  fi
  names+=("$name")
  (
    printf '\n==== %s: %s\n' "$name" "$*"
    status=124
    begin=$SECONDS
    if ((limit > 0)); then
      status=0
      timeout --kill-after=5 "$limit" "$@" || status=$?
    fi
    ((status == 124 || status == 137)) && echo "stopped: it had $((limit > 0 ? limit : 0)) s"
    echo "$status $((SECONDS - begin))" > "$log.result"
  ) > "$log" 2>&1 < /dev/null &
  pids+=($!)
}

# Waits for all that was started, and prints its output in that order.
finish() {
  if ((dry_run)); then
    return
  fi
  local i status seconds
  for i in "${!pids[@]}"; do
    wait "${pids[$i]}" || true
    cat "$logs/$i"
    read -r status seconds < "$logs/$i.result" || { status=1 seconds=0; }
    if ((status == 0)); then
      summary+=("passed  ${names[$i]} ($seconds s)")
    else
      summary+=("FAILED  ${names[$i]} ($seconds s)")
      failed=1
    fi
    rm -f "$logs/$i" "$logs/$i.result"
  done
  names=() pids=()
}

# step NAME LIMIT COMMAND...: alone. One that fails does not keep the others from being run.
step() {
  start "$@"
  finish
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
export -f facts

# The three builds compile the same sources for this device alone, side by side.
build_steps() {
  local arch=${TORCH_CUDA_ARCH_LIST:-}
  if [[ -z $arch ]] && ! ((dry_run)); then
    arch=$("$PYTHON" -c 'import torch; major, minor = torch.cuda.get_device_capability(); print(f"{major}.{minor}" + "a" * (major >= 9))')
  fi
  start "build of the extension" 200 env BGKD_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" MAX_JOBS="$(nproc)" \
    "$PYTHON" -m pip install --no-build-isolation --no-deps --editable .
  start "build of the kernel benchmark" 200 bash -c "cmake -S . -B $build -DBGKD_KERNEL_BENCHMARK=ON \
    -DCMAKE_CUDA_ARCHITECTURES=native -DCMAKE_CUDA_COMPILER='$CUDA_HOME/bin/nvcc' && cmake --build $build --target kernel_benchmark -j $(nproc)"
  start "kernels for the executor" 200 "$PYTHON" tests/gpu/compare_bits.py --compile-only
  finish
}

check_steps() {
  start "bits beside the executor's" 150 "$PYTHON" tests/gpu/compare_bits.py
  start "two steps of distillation" 120 "$PYTHON" tests/gpu/distil_two_steps.py
  start "two steps, gradient in forward" 120 "$PYTHON" tests/gpu/distil_two_steps.py training.gradient_in_forward=true
  start "whole build" 120 "$PYTHON" -m pytest -q tests/test_cuda_build.py tests/test_ops_refusals.py
  start "operator tests on the GPU" 150 env BGKD_TEST_DEVICE=cuda "$PYTHON" -m pytest -q "${operator_tests[@]}"
  start "CUDA graphs" 120 "$PYTHON" -m pytest -q tests/test_cuda_graphs.py
  if command -v compute-sanitizer > /dev/null; then
    local tool
    for tool in memcheck racecheck initcheck synccheck; do
      start "$tool of the kernels" 150 compute-sanitizer --tool "$tool" --error-exitcode 1 "$kernels" "${small[@]}"
    done
    # Without the caching allocator, so that a read behind a tensor is a read behind an allocation.
    start "memcheck of the operators" 150 env BGKD_TEST_DEVICE=cuda PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool memcheck --error-exitcode 1 --target-processes all "$PYTHON" -m pytest -q "${few_tests[@]}"
  else
    skip "compute-sanitizer" "it is not in CUDA_HOME or on PATH"
  fi
  finish
}

all_steps() {
  step "facts" 60 bash -c facts
  build_steps
  check_steps
  # Nothing runs beside what is timed. The options are split into words.
  # shellcheck disable=SC2086
  step "kernel benchmark" 120 "$kernels" $shapes --json "${report%.txt}-kernels.jsonl"
  # shellcheck disable=SC2086
  step "loss benchmark" 200 "$PYTHON" benchmarks/loss.py --device cuda $losses --json "${report%.txt}-losses.json"
  if ! ((dry_run)); then
    printf '\n==== summary\n'
    printf '%s\n' "${summary[@]}" "$SECONDS s in all"
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
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
status=0
# In a subshell, whose status is that of the steps.
(all_steps) 2>&1 | tee "$report" || status=$?
echo "report: $report"
exit "$status"
