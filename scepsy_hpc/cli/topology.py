"""``topology``: what GPUs and links there are."""

from __future__ import annotations

from pathlib import Path

import click

from scepsy_hpc.cli.options import (
    FILE,
    POSITIVE,
    example,
    json_option,
    print_json,
    refuse_input_as_output,
    say,
)


@click.command(
    epilog=example(
        "scepsy topology --local -o topology.yaml",
        "scepsy topology --slurm gpu -o topology.yaml",
    )
)
@click.option("--local", is_flag=True, help="Ask NVML on this machine.")
@click.option("--slurm", metavar="PARTITION", help="Ask Slurm (sinfo) about a partition.")
@click.option("--from-nvidia-smi", "smi", type=FILE, help="Read saved `nvidia-smi topo -m` output.")
@click.option("--gpu-type", help="GPU type, such as h100_sxm, where the source does not say.")
@click.option(
    "--gpu-memory-gib", type=POSITIVE, help="Memory of a GPU in GiB, where the source is silent."
)
@click.option("-o", "--output", type=FILE, required=True, help="topology.yaml to write.")
@json_option
def topology(
    local: bool,
    slurm: str | None,
    smi: Path | None,
    gpu_type: str | None,
    gpu_memory_gib: float | None,
    output: Path,
    as_json: bool,
) -> None:
    """Write down what GPUs and links there are.

    Give one source: --local, --slurm or --from-nvidia-smi.
    """
    from scepsy_hpc.cluster import discovery
    from scepsy_hpc.formats.topology import save_topology
    from scepsy_hpc.report import inventory, tables

    if (local, slurm is not None, smi is not None).count(True) != 1:
        raise click.UsageError("give one of --local, --slurm PARTITION, --from-nvidia-smi FILE")
    refuse_input_as_output(output, smi)
    if slurm is not None:
        found = discovery.discover_slurm(slurm, gpu_type, gpu_memory_gib)
    elif smi is not None:
        found = discovery.from_nvidia_smi(smi, gpu_type, gpu_memory_gib)
    else:
        found = discovery.discover_local()
    save_topology(output, found)
    if as_json:
        print_json({"nodes": found.nodes, "num_gpus": found.num_gpus, "note": found.note})
    else:
        tables.show(inventory.topology_table(found))
        if found.note:
            tables.show(f"note: {found.note}")
        say(f"wrote {output}")
