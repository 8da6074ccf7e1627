"""What engines will miss on the nodes, looked for before a queue is waited for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scepsy_hpc.cluster.site import Site, expanded, job_python
from scepsy_hpc.engines import vllm
from scepsy_hpc.engines.weights import check_model_folder, find_model
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.workflow import EngineArgs


@dataclass(frozen=True, slots=True)
class WantedEngine:
    """An engine that a plan or a profile asks for; ``name`` is how the user calls it."""

    name: str
    engine: str
    model: str
    engine_args: EngineArgs


@dataclass(frozen=True, slots=True)
class Lack:
    """Something missing. Not ``certain`` where the nodes may still have it."""

    text: str
    certain: bool = True


def lacks_of(engines: Sequence[WantedEngine], site: Site, on_slurm: bool) -> list[Lack]:
    """What is missing for ``engines``, once each. ``on_slurm``: they run on other machines."""
    real = [wanted for wanted in engines if wanted.engine == "vllm"]
    if not real:
        return []
    found = [*_vllm_lacks(site, on_slurm)]
    for wanted in real:
        found += _weights_lacks(wanted, site, on_slurm)
    return list(dict.fromkeys(found))


def require(engines: Sequence[WantedEngine], site: Site, on_slurm: bool) -> list[str]:
    """Warnings about what may be missing. Raises InputError for what certainly is."""
    found = lacks_of(engines, site, on_slurm)
    certain = [lack.text for lack in found if lack.certain]
    if certain:
        more = f" (and {len(certain) - 1} more)" if len(certain) > 1 else ""
        raise InputError(f"{certain[0]}{more}; nothing was submitted")
    return [lack.text for lack in found]


def _vllm_lacks(site: Site, on_slurm: bool) -> Iterator[Lack]:
    box = site.container
    if box is not None:
        if "://" not in box.image:
            yield from _image_lacks(box.image)
        return  # what is inside shows on a node: `scepsy doctor --site` looks
    python = job_python(site) if on_slurm else None
    interpreter = python or vllm.python()
    try:
        vllm.installed_version(interpreter)
    except InputError as error:
        # The site's set-up may load a module that has vLLM, or say SCEPSY_VLLM_PYTHON.
        elsewhere = on_slurm and bool(site.setup or (python and python != sys.executable))
        hint = "; `scepsy doctor --site` looks on a node" if elsewhere else ""
        yield Lack(f"{error}{hint}", certain=not elsewhere)


def _image_lacks(image: str) -> Iterator[Lack]:
    try:
        path = Path(expanded(image, "container.image"))
    except InputError as error:
        yield Lack(str(error), certain=False)
        return
    if not path.exists():
        yield Lack(f"site: container.image: {path}: no such file on this machine")


def _weights_lacks(wanted: WantedEngine, site: Site, on_slurm: bool) -> Iterator[Lack]:
    try:
        folder = find_model(wanted.model, site)
        if folder is None:
            yield Lack(
                f"{wanted.name}: the weights of {wanted.model} are not on this machine: each node "
                "will look for them in the network; name the folder that has them as "
                "`weights: {folder: ...}` in the site file",
                certain=False,
            )
        else:
            check_model_folder(folder, wanted.engine_args)
    except InputError as error:
        # A path of the node alone cannot be seen from here.
        unseen = on_slurm and "is not set on this machine" in str(error)
        yield Lack(f"{wanted.name}: {error}", certain=not unseen)
