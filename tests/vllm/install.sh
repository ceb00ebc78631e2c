#!/usr/bin/env bash
# The real vLLM engine on a machine without a GPU, from a Python package index alone: its sources
# install without a compiler. PyTorch and p_eagle_cuda are those of the Python that is named.
#   install.sh VENV PYTHON [VLLM_VERSION]
set -euo pipefail
venv=${1:?expected the folder of the virtual environment}
python=${2:?expected a Python that has p_eagle_cuda}
version=${3:-0.33.0}
here=$(cd "$(dirname "$0")" && pwd)

"$python" -m venv "$venv"
inherited=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
own=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$inherited')" > "$own/inherited.pth"

pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$@"; }
pip -r "$here/requirements.txt" "setuptools>=77" setuptools_rust setuptools_scm wheel jinja2
pip --no-deps xgrammar==0.2.8 compressed-tensors==0.17.0 triton
# Without cargo vLLM leaves out a frontend that is optional and would need another index.
path=$(tr ':' '\n' <<< "$PATH" | grep --invert-match --ignore-case cargo | paste --serial --delimiters=:)
PATH=$path VLLM_VERSION_OVERRIDE=$version VLLM_TARGET_DEVICE=empty \
  pip --no-deps --no-build-isolation --no-binary vllm "vllm==$version"
cp -r "$here/standins" "$venv/standins"  # setuptools builds where the sources are
pip --no-deps --no-build-isolation "$venv/standins"
