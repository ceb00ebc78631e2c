#!/usr/bin/env bash
# Compiles every kernel for every architecture that the project knows, or for those in
# P_EAGLE_ARCHS, to machine code alone; spills, local memory and warnings are errors of the build.
# Needs the build requirements, as `pip install --no-build-isolation .` does, and no GPU.
#
#   benchmarks/compile_all.sh [FOLDER]    a build folder to go on with; a temporary one if not given
set -euo pipefail
cd "$(dirname "$0")/.."
(($# <= 1)) || {
  echo "compile_all: error: expected at most a build folder, got $# arguments" >&2
  exit 2
}
folder=${1:-}
if [[ ! $folder ]]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder"
python=${PYTHON:-python3}
pybind11=$("$python" -m pybind11 --cmakedir)
cmake -S . -B "$folder" -G Ninja -DP_EAGLE_ARCHS="${P_EAGLE_ARCHS:-all}" -DCMAKE_BUILD_TYPE=Release \
  -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$pybind11" \
  -DSKBUILD_PROJECT_VERSION=0 >"$folder/configure.log" || {
  cat "$folder/configure.log"
  exit 1
}
cmake --build "$folder" --target cubins
echo "compile_all: all kernels compile for: ${P_EAGLE_ARCHS:-all architectures}; without spills"
