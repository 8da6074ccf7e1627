"""What is needed to start one engine instance, whatever the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from scepsy_hpc.cluster.site import Site
from scepsy_hpc.formats.workflow import EngineArgs


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One instance to start on this machine.

    ``gpus`` are indices or UUIDs as CUDA_VISIBLE_DEVICES takes them; ``gpu_share_pct`` holds for
    each of them. ``served_names`` are the model names it answers to. ``mps_environment`` attaches
    an engine on part of a GPU to the node's MPS daemon; without it the engine is time-sliced.
    ``site`` says where scratch, weights and the engine's image are.
    """

    instance_id: str
    engine: str
    model: str
    served_names: tuple[str, ...]
    gpu_type: str
    gpu_memory_gib: float
    gpus: tuple[str, ...]
    port: int
    log_path: Path
    tp_degree: int = 1
    gpu_share_pct: int = 100
    host: str = "127.0.0.1"
    engine_args: EngineArgs = field(default_factory=dict)
    api_key: str | None = None
    max_queued: int | None = None
    mps_environment: dict[str, str] = field(default_factory=dict)
    site: Site = field(default_factory=Site)
