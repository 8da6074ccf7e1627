"""site.yaml: what one Slurm site wants to hear."""

from __future__ import annotations

from pathlib import Path

import pytest

from scepsy_hpc.cluster.site import Site, gpu_options, load_site
from scepsy_hpc.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "jobs" / "sites" / "example.yaml"


def test_example_is_valid():
    """The shipped example loads and says what its comments say."""
    site = load_site(EXAMPLE)
    assert site.partition == "gpu"
    assert gpu_options(site, "h100_sxm", 4) == {"gres": "gpu:h100:4"}


@pytest.mark.parametrize(
    ("site", "gpu_type", "options"),
    [
        (Site(), "h100_sxm", {"gres": "gpu:2"}),
        (Site(gpu_request="gpus_per_node"), None, {"gpus_per_node": "2"}),
        (
            Site(gpu_request="gpus_per_node", gpu_names={"a100": "a100_80"}),
            "a100",
            {"gpus_per_node": "a100_80:2"},
        ),
        (Site(gpu_names={"cpu_slice": "none"}), "cpu_slice", {}),
    ],
)
def test_gpus_are_asked_for_in_the_site_s_way(site, gpu_type, options):
    """GPUs are asked for by gres or gpus-per-node, with the site's own name or without one."""
    assert gpu_options(site, gpu_type, 2) == options


def test_no_site_file_means_slurm_s_defaults():
    """Without a site file nothing is chosen for the user."""
    assert load_site(None) == Site()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("partion: gpu", r"site\.yaml: partion: unknown key; known keys: .*partition"),
        ("time_min: 04:00:00", r"site\.yaml: time_min"),
        ("sbatch: {time: 60}", r"sbatch\.time: cannot be set here; use the key `time_min`"),
        ("gpu_request: gpus", r"gpu_request"),
    ],
)
def test_bad_site_is_one_line(tmp_path, line, said):
    """A wrong key, unit or a second way to say the same is one line with the fix."""
    path = tmp_path / "site.yaml"
    path.write_text(f"schema: scepsy/site/v1\n{line}\n")
    with pytest.raises(InputError, match=said) as caught:
        load_site(path)
    assert "\n" not in str(caught.value)
