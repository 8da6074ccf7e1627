#!/usr/bin/env bash
# Installs what the mini cluster needs from Debian's packages: Slurm, munge and setfacl.
# Does nothing where they are there already. Run as root.
set -euo pipefail

missing=()
for pair in slurmctld:slurm-wlm slurmd:slurm-wlm sbatch:slurm-wlm munged:munge setfacl:acl; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "slurm-wlm, munge and acl are installed"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "install.sh: installing ${missing[*]} needs root; run it with sudo" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "install.sh: no apt-get here; the mini cluster needs Debian or Ubuntu" >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends slurm-wlm munge acl
