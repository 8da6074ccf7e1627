#!/usr/bin/env bash
# Where there is a network: fetch wheels for another machine and split them into parts.
#
#   pack_wheels.sh [-v 3.12] [-a x86_64] [-g 28] [-s 60] OUT REQUIREMENT...
#
# -v  Python of the node             -a  its processor
# -g  its glibc, 28 for 2.28         -s  largest part in MB
# A REQUIREMENT is what pip takes: NAME==VERSION, or `-r FILE`. Their own requirements are not
# fetched: name what the node lacks (missing_requirements.py lists it).
# OUT gets parts/ and manifest.sha256, which travel; join_wheels.sh puts them together.
# PYTHON names the Python whose pip is used here (default: python3).
set -euo pipefail

python_version=3.12 arch=x86_64 glibc=28 part_mb=60
while getopts v:a:g:s: option; do
    case $option in
        v) python_version=$OPTARG ;;
        a) arch=$OPTARG ;;
        g) glibc=$OPTARG ;;
        s) part_mb=$OPTARG ;;
        *) sed -n '4,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
if [ $# -lt 2 ]; then
    sed -n '4,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
out=$1
shift
if [ -e "$out/manifest.sha256" ]; then
    echo "$out: holds a pack already; give another folder" >&2
    exit 2
fi
mkdir -p "$out/parts" "$out/wheels"

# pip matches the number in a platform's name exactly: name every one that the node can load.
platforms=(--platform "manylinux2014_$arch" --platform "manylinux1_$arch")
for minor in $(seq 5 "$glibc"); do
    platforms+=(--platform "manylinux_2_${minor}_$arch")
done
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps \
    --only-binary=:all: --implementation cp --python-version "$python_version" \
    "${platforms[@]}" --dest "$out/wheels" "$@"

cd "$out"
for wheel in wheels/*.whl; do
    split --bytes="${part_mb}MB" --numeric-suffixes --suffix-length=3 \
        "$wheel" "parts/$(basename "$wheel").part"
done
sha256sum parts/* wheels/* > manifest.sha256
rm -r wheels
echo "$out: $(ls parts | wc -l) parts of at most $part_mb MB, $(du -sm parts | cut -f1) MB in all"
