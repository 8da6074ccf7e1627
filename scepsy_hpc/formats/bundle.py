"""A profile bundle: ``bundle.yaml`` says what was measured how, ``points.csv`` the points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from scepsy_hpc.files import record
from scepsy_hpc.formats.topology import Link
from scepsy_hpc.formats.workflow import EngineArgs

SCHEMA = "scepsy/profile/v1"

How = Literal["measured", "modelled", "derived"]
Positive = Annotated[float, Field(gt=0)]


@record
class BundleHeader:
    """``bundle.yaml``. ``how`` says whether an engine was measured, modelled or derived."""

    model: str
    engine: str
    engine_version: str
    engine_args: EngineArgs
    precision: str
    gpu_type: str
    gpu_memory_gib: Positive
    how: How
    source: str
    licence: str
    date: str
    points_sha256: str
    imported_from: str | None = None
    driver: str | None = None
    link: Link | None = None
    weights_gib: Positive | None = None
    kv_bytes_per_token: Positive | None = None
    spans_sha256: str | None = None


@record
class Point:
    """One row of ``points.csv``: one operating point. None is unknown, never zero."""

    tp_degree: Annotated[int, Field(ge=1)]
    gpu_share_pct: Annotated[int, Field(ge=1, le=100)]
    load: Literal["open", "closed"]
    throughput_rps: Positive
    latency_mean_s: Positive
    input_tokens_mean: Annotated[float, Field(ge=0)]
    output_tokens_mean: Annotated[float, Field(ge=0)]
    arrival_rate_rps: Positive | None = None
    concurrency: Positive | None = None
    link: Link | None = None
    num_requests: int | None = None
    latency_p50_s: Positive | None = None
    latency_p95_s: Positive | None = None
    latency_p99_s: Positive | None = None
    ttft_mean_s: Positive | None = None
    ttft_p95_s: Positive | None = None
    tpot_mean_s: Positive | None = None
    cached_tokens_mean: float | None = None
    saturated: bool | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle; ``sha256`` (of ``points.csv``) is its name in plans."""

    header: BundleHeader
    points: tuple[Point, ...]
    path: Path

    @property
    def sha256(self) -> str:
        """Identity of the bundle: the digest of its points."""
        return self.header.points_sha256
