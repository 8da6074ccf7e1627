#!/usr/bin/env bash
# On the node without network: check the parts, join them, install the wheels.
#
#   join_wheels.sh PACK TARGET
#
# PACK holds parts/ and manifest.sha256 of pack_wheels.sh; the parts may arrive in any order, in
# as many trips as it takes. TARGET is a new folder, best on node-local disk; with it on PYTHONPATH
# its packages go before those of the Python. PYTHON names that Python (default: python3).
set -euo pipefail

if [ $# -ne 2 ]; then
    sed -n '4,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
pack=$1 target=$2
if [ ! -f "$pack/manifest.sha256" ]; then
    echo "$pack: holds no manifest.sha256; copy it beside parts/" >&2
    exit 2
fi
mkdir -p "$target"
target=$(cd "$target" && pwd)
cd "$pack"

grep '  parts/' manifest.sha256 > .parts.sha256
missing=0
while read -r _ part; do
    if [ ! -f "$part" ]; then
        echo "missing: $part" >&2
        missing=$((missing + 1))
    fi
done < .parts.sha256
if [ "$missing" -gt 0 ]; then
    echo "$missing of $(wc -l < .parts.sha256) parts are not here yet; nothing was installed" >&2
    exit 1
fi
if ! sha256sum --check --quiet .parts.sha256; then
    echo "copy the parts named above again; nothing was installed" >&2
    exit 1
fi

rm -rf wheels
mkdir wheels
grep '  wheels/' manifest.sha256 > .wheels.sha256
while read -r _ wheel; do
    cat "parts/$(basename "$wheel")".part* > "$wheel"
done < .wheels.sha256
sha256sum --check --quiet .wheels.sha256
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --no-compile --no-cache-dir --upgrade --target "$target" wheels/*.whl
rm -r wheels
echo "installed $(wc -l < .wheels.sha256) wheels; now: export PYTHONPATH=$target"
