"""What a comparison rests on, in sentences: which engines ran, whose timing, which flags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scepsy_hpc.bundles.library import resolve_bundle
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.bundle import Bundle, load_bundle
from scepsy_hpc.formats.parallelism import CPU_TYPE, is_cpu_type
from scepsy_hpc.formats.plan import Deployment, Plan
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.formats.status import RunStatus
from scepsy_hpc.serving.run_folder import RunFolder, read_json
from scepsy_hpc.tracing.demand.demand import demand_of
from scepsy_hpc.tracing.demand.stability import length_text

FLAG_WORDS = {
    "above_95_percent": "above 95% of its capacity",
    "below_first_concurrency": "lighter load than was profiled",
    "between points": "curve between points",
    "capacity_lower_bound": "capacity is at least this",
    "derived": "derived, not measured",
    "extrapolated": "heavier load than was profiled",
    "failed_runs": "traced runs that failed",
    "few_runs": "few runs",
    "inferred": "order of calls inferred",
    "kv_limited": "limited by its KV cache",
    "makespan_s": "makespan",
    "modelled": "modelled, not measured",
    "overloaded": "overloaded",
    "resampled": "traced runs drawn again",
    "simulated": "simulated",
    "transferred": "taken over from other points",
}


def in_words(flag: str) -> tuple[str, str, str]:
    """What a flag is about, what it says, and the details: ``LLM: code: details`` taken apart."""
    parts = flag.split(": ", 2)
    if parts[0] in FLAG_WORDS:
        about, details = "all", flag.removeprefix(f"{parts[0]}: ")
        return about, FLAG_WORDS[parts[0]], details
    if len(parts) == 3 and parts[1] in FLAG_WORDS:
        return parts[0], FLAG_WORDS[parts[1]], parts[2]
    about, _, details = flag.partition(": ")
    return (about, "", details) if details else ("all", "", flag)


def engine_notes(plan: Plan, bundles: Sequence[Bundle] = ()) -> list[str]:
    """Says plainly which engines were simulated, by which profile, and which were real."""
    simulated = {n: llm for n, llm in plan.llms.items() if llm.engine == "simulated"}
    real = {n: llm for n, llm in plan.llms.items() if llm.engine != "simulated"}
    notes = []
    if simulated:
        timing = "; ".join(dict.fromkeys(_timing(llm) for llm in simulated.values()))
        which = "The engines" if not real else f"The engines of {', '.join(simulated)}"
        notes.append(
            f"{which} of this run were SIMULATED: no model was computed. Their timing follows "
            f"profiles: {timing}. Agreement of predicted and measured figures is "
            "self-consistency, not accuracy on real GPUs."
        )
    if real:
        which = "The engines were real" if not simulated else f"Real engines: {', '.join(real)}"
        what = "; ".join(dict.fromkeys(_what_ran(llm, bundles) for llm in real.values()))
        notes.append(f"{which}: {what}.")
    if any(is_cpu_type(llm.gpu_type) for llm in real.values()):
        notes.append(
            f"The GPUs of type {CPU_TYPE} are fixed fractions of a CPU core. The figures say how "
            "well prediction and run agree there, and nothing about GPUs."
        )
    return notes


def share_notes(folder: RunFolder) -> list[str]:
    """Says which engines were not held to their share of a GPU."""
    status = read_json(folder.status, RunStatus)
    return [
        f"{i.id} was time-sliced, no MPS held it to its share of the GPU: {i.time_sliced}"
        for i in (status.instances if status else ())
        if i.time_sliced
    ]


def sample_note(spans: Sequence[Span], workflow: str) -> list[str]:
    """Says how far the traced runs, as a sample of all, may be off by themselves."""
    text = length_text(np.array(demand_of(spans, workflow).run_lengths_s))
    return [f"{text}: an error of that size may be the sample's."] if text else []


def _timing(llm: Deployment) -> str:
    """A simulated engine's model and the profile that its timing is from."""
    name = llm.engine_args.get("timing_bundle")
    if name is None:
        return f"{llm.model} from its profile"
    try:
        header = load_bundle(resolve_bundle(str(name))).header
    except InputError:
        return f"{llm.model} from {name}"
    origin = header.imported_from or header.source
    return f"{llm.model} from {name} ({header.how}, of {header.gpu_type}; {origin})"


def _what_ran(llm: Deployment, bundles: Sequence[Bundle]) -> str:
    """A real engine, and what its prediction rests on."""
    version = f" {llm.engine_version}" if llm.engine_version else ""
    text = f"{llm.model} by {llm.engine}{version} on {llm.gpu_type}"
    own = [b.header for b in bundles if b.sha256 == llm.bundle_sha256]
    if not own:
        return text
    return f"{text}, predicted from a {own[0].how} profile of {own[0].date}"
