#!/usr/bin/env bash
# Everything that a GPU can tell about this project, in one call: build, correctness, sanitizers,
# times. Needs Python with torch, nvcc, pytest and the build requirements; no network. CUTLASS_DIR
# names the CUTLASS sources where Python's nvidia-cutlass is not installed.
#
#   benchmarks/gpu_check.sh --out DIR              all steps, the most valuable first
#   benchmarks/gpu_check.sh --out DIR --only pass  one step again, or several: pass,linear
#   benchmarks/gpu_check.sh --out DIR --dry-run    all steps on a CPU: tests this script
#
# Every step has its own time box, and fails for itself alone. What cannot run here is skipped, and
# says why. What has passed is not done again in the same work folder. DIR holds log.txt, table.txt and <gpu>-<date>.json after every step, so a
# run that is cut short leaves what it has found. Clocks and settings of the GPU are left alone.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
STEPS=(environment build smoke ops pass linear conformance kernels verification memcheck racecheck synccheck
  counters compiled serving)
SKIPPED=77 # how a step exits that cannot run here; its last line says why

die() {
  echo "gpu_check: error: $1" >&2
  exit 2
}

out='' work='' only='' dry='' budget=570
while (($#)); do
  case $1 in
    --dry-run) dry=1 ;;
    --out | --work | --only | --budget)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    *) die "unknown argument '$1', expected --out, --work, --only, --budget or --dry-run" ;;
  esac
  shift
done
[[ $out ]] || die "--out DIR is missing"
[[ $budget =~ ^[1-9][0-9]*$ ]] || die "--budget must be a whole number of seconds, got '$budget'"
for name in ${only//,/ }; do
  [[ " ${STEPS[*]} " == *" $name "* ]] || die "there is no step '$name', expected: ${STEPS[*]}"
done
mkdir -p "$out" || die "cannot make the folder '$out'"
out=$(realpath "$out")
work=$(realpath -m "${work:-$out/work}")
mkdir -p "$work" || die "cannot make the folder '$work'"
if [[ ${CUTLASS_DIR:-} ]]; then
  [[ -f $CUTLASS_DIR/include/cute/tensor.hpp ]] ||
    die "CUTLASS_DIR has no include/cute/tensor.hpp: '$CUTLASS_DIR'"
  CUTLASS_DIR=$(realpath "$CUTLASS_DIR")
  export CUTLASS_DIR
fi

export PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 P_EAGLE_ARCHS=90a
export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
cores=$(nproc)
bench() { "$python" "$root/benchmarks/$1.py" "${@:2}"; }
tests() { "$python" -m pytest -q -p no:cacheprovider "$@"; }
parallel() { tests --timeout=120 -n "$((cores < $1 ? cores : $1))" "${@:2}"; }
export -f bench tests parallel
export root work out dry python cores SKIPPED

# ---- Steps: seconds, and what to do. All run in the root of the repository. ----------------------

environment_s=60
environment() {
  bench timing >"$work/environment.json" && cat "$work/environment.json" || return
  nvcc --version | tail -2
  [[ $dry ]] && return
  nvidia-smi
  grep -q '"gpu"' "$work/environment.json" || { echo "torch sees no CUDA device"; return 1; }
}

build_s=300
build() {
  if [[ $dry ]]; then
    echo "dry run: the installed package is used"
  else
    # One source file takes longest; its kernels are compiled side by side.
    NVCC_APPEND_FLAGS="--split-compile=$cores" CMAKE_BUILD_PARALLEL_LEVEL=$cores "$python" -m pip \
      install -v --no-build-isolation --no-deps --no-index --no-compile --upgrade \
      --config-settings "build-dir=$work/build" --target "$work/site" . || return
  fi
  cd / && "$python" -c '
from p_eagle_cuda import ops
from p_eagle_cuda import _C
print(ops.__file__, _C.cuda_archs, _C.nvcc_version, sorted(_C.cuda_ops()))'
}

smoke_s=90
smoke() {
  local where=cuda
  [[ $dry ]] && where=cpu
  tests -x "tests/test_ops.py::test_matches_reference[$where-embed_norm_concat-torch.bfloat16]" \
    "tests/test_drafter_gpu.py::test_graphs_change_no_bit[$where-fused]"
}

ops_s=150
ops() {
  if [[ $dry ]]; then
    tests tests/test_drafter_gpu.py -k "cpu and (padded or bias)"
  else
    parallel 6 -m gpu tests --ignore=tests/sim --ignore=tests/test_benchmarks.py
  fi
}

pass_s=170
pass() {
  if [[ $dry ]]; then
    bench bench_pass --dry-run --drafter bundled --batch 1 --k 2 --context 20 --accepted mean \
      --kv bf16 --json "$work/pass.json"
    return
  fi
  # The most wanted first; what is too slow does not keep the others from their share of the box.
  local status=0
  timeout --foreground 70 "$python" benchmarks/bench_pass.py --k 7 5 --context 4096 \
    --accepted mean --kv bf16 --json "$work/pass.json" || status=$?
  timeout --foreground 40 "$python" benchmarks/bench_pass.py --k 7 --batch 1 8 32 128 \
    --context 4096 --accepted mean --kv fp8 --weights fp8 --rounds 21 \
    --json "$work/pass-fp8.json" || status=$?
  timeout --foreground 30 "$python" benchmarks/bench_pass.py --k 7 --batch 1 8 32 \
    --context 1024 16384 --accepted 0 K ragged --kv fp8 --rounds 21 \
    --json "$work/pass-sweep.json" || status=$?
  timeout --foreground 30 "$python" benchmarks/bench_pass.py --drafter Qwen3-8B --k 7 \
    --batch 1 8 32 128 --context 4096 --accepted mean --kv bf16 --rounds 21 \
    --json "$work/pass-qwen3.json" || status=$?
  return $status
}

linear_s=120
linear() {
  if [[ $dry ]]; then
    bench bench_linear --dry-run --drafter bundled --rows 2 --weights bf16 w8a8 \
      --json "$work/linear.json"
    return
  fi
  local status=0
  timeout --foreground 70 "$python" benchmarks/bench_linear.py --rows 14 1 7 10 16 24 32 \
    --json "$work/linear.json" || status=$?
  timeout --foreground 50 "$python" benchmarks/bench_linear.py --weights bf16 w8a8 \
    --rows 112 448 1792 48 224 64 128 896 4096 --json "$work/linear-wide.json" || status=$?
  return $status
}

conformance_s=120
conformance() {
  if [[ $dry ]]; then
    tests tests/sim/test_conformance_bits.py -k in-order-race
  else
    parallel 16 -m gpu tests/sim --dist loadfile
  fi
}

kernels_s=60
kernels() {
  if [[ $dry ]]; then
    bench bench_kernel --dry-run --drafter bundled --batch 1 --k 2 --context 20 \
      --json "$work/kernels.json"
  else
    bench bench_kernel --json "$work/kernels.json"
  fi
}

verification_s=40
verification() {
  if [[ $dry ]]; then
    bench bench_verify --dry-run --batch 2 --nodes 4 --vocab-size 100 \
      --json "$work/verification.json"
  else
    bench bench_verify --nodes 8 --json "$work/verification.json"
  fi
}

# The allocator of torch would hide the ends of tensors, so each gets its own memory.
sanitized() {
  local run=("$python" benchmarks/one_pass.py --batch 2 --context 100)
  if [[ $dry ]]; then
    echo "dry run: no $1" && "${run[@]}" --device cpu --passes 1
  else
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 "${run[@]}"
  fi
}
memcheck_s=90
memcheck() { sanitized memcheck; }
racecheck_s=90
racecheck() { sanitized racecheck; }
synccheck_s=60
synccheck() { sanitized synccheck; }

# With as many counters as this ncu and this GPU know.
counters_s=90
counters() {
  if [[ $dry ]]; then
    echo "dry run: no ncu"
    return
  fi
  command -v ncu || { echo "there is no ncu"; return "$SKIPPED"; }
  local basic=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
  basic+=,launch__registers_per_thread,launch__grid_size
  local more=$basic,dram__throughput.avg.pct_of_peak_sustained_elapsed
  more+=,sm__inst_executed_pipe_tensor.sum,lts__t_sector_hit_rate.pct
  local reason stalls=''
  for reason in barrier lg_throttle long_scoreboard math_pipe_throttle membar mio_throttle \
    no_instruction not_selected short_scoreboard sleeping wait; do
    stalls+=,smsp__average_warps_issue_stalled_${reason}_per_issue_active.ratio
  done
  local pipe=,sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active
  local metrics
  for metrics in "$more$pipe$stalls" "$more$stalls" "$basic"; do
    ncu --metrics "$metrics" --clock-control none --print-units base --csv --page raw \
      --log-file "$work/ncu.csv" \
      --kernel-name 'regex:linear_kernel|wide_kernel|lm_head_topk|attention|prepare_inputs|embed_norm' \
      "$python" benchmarks/one_pass.py --drafter gpt-oss-20b --batch 1 --k 7 --context 4096 \
      --accepted mean --passes 1 && grep -q gpu__time_duration "$work/ncu.csv" && return
    tail -n 20 "$work/ncu.csv"
    if grep -q ERR_NVGPUCTRPERM "$work/ncu.csv"; then
      echo "this machine lets nobody read counters: ERR_NVGPUCTRPERM"
      return "$SKIPPED"
    fi
  done
  return 1
}

# The reference under torch.compile, which takes seconds for each shape.
compiled_s=150
compiled() {
  if [[ $dry ]]; then
    bench bench_linear --dry-run --compile --drafter bundled --rows 2 --weights bf16 \
      --json "$work/linear-compiled.json"
    return
  fi
  local status=0
  timeout --foreground 90 "$python" benchmarks/bench_linear.py --compile --rows 14 --weights bf16 \
    --json "$work/linear-compiled.json" || status=$?
  timeout --foreground 60 "$python" benchmarks/bench_kernel.py --compile --batch 1 32 --kv bf16 \
    --kernel head embed_norm_concat --json "$work/kernels-compiled.json" || status=$?
  return $status
}

serving_s=240
serving() {
  local why
  why=$("$python" -c 'import vllm' 2>&1) || { echo "vLLM is not importable: ${why##*$'\n'}"; return "$SKIPPED"; }
  local sizes=(--drafter gpt-oss-20b --target-layers 8 --concurrency 1 16 --input-tokens 512
    --output-tokens 128 --rounds 2)
  if [[ $dry ]]; then
    sizes=(--dry-run --drafter bundled --target-layers 4 --concurrency 2 --input-tokens 16
      --output-tokens 8 --rounds 1 --variant v1)
  fi
  # What is compared comes first: time may run out.
  bench bench_serving "${sizes[@]}" --json "$work/serving.json"
}

# ---- One step after the other --------------------------------------------------------------------

export -f sanitized "${STEPS[@]}"
command_line="benchmarks/gpu_check.sh --out DIR${only:+ --only $only}${dry:+ --dry-run}"
touch "$work/steps.tsv"

# Rewrites what is known, in few files that are easy to carry away.
report() {
  "$python" "$root/benchmarks/gpu_results.py" "$work" --out "$out" --command "$command_line" ||
    echo "gpu_check: the results could not be put together" >&2
}

record() { # step, result, seconds
  sed -i "/^$1\t/d" "$work/steps.tsv"
  printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$work/steps.tsv"
}

failed=0
for step in "${STEPS[@]}"; do
  [[ $only && ,$only, != *,$step,* ]] && continue
  if [[ ! $only ]] && grep -qP "^$step\tok\t" "$work/steps.tsv"; then
    echo "== $step: has passed before"
    continue
  fi
  box=${step}_s
  box=${!box}
  left=$((budget - SECONDS))
  ((box > left)) && box=$left
  if ((box < 5)); then
    record "$step" "no time left" 0
    failed=1
    continue
  fi
  echo "== $step (at $SECONDS s, at most $box s)"
  start=$SECONDS
  timeout --kill-after=10 "$box" bash -c "$step" >"$work/$step.log" 2>&1
  status=$?
  case $status in
    0) result=ok ;;
    124 | 137) result="stopped after $box s" ;;
    "$SKIPPED") result=skipped status=0 ;;
    *) result="failed ($status)" ;;
  esac
  ((status == 0)) || failed=1
  record "$step" "$result" $((SECONDS - start))
  tail -n 12 "$work/$step.log"
  report
done
report
cat "$out/table.txt"
exit $failed
