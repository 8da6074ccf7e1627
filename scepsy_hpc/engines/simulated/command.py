"""The simulated engine: an OpenAI-compatible server whose timing follows a profile bundle.

It computes nothing. ``python -m scepsy_hpc.engines.simulated.command --help`` starts one;
:func:`command` builds that command line. Each answer carries the header ``x-scepsy-engine``, which
says that the engine is simulated and from which bundle its timing comes.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from scepsy_hpc.engines.config import EngineConfig
from scepsy_hpc.errors import InputError, ScepsyError

API_KEY_VARIABLE = "VLLM_API_KEY"

# engine_args this engine knows, and the option each becomes; None: accepted, changes nothing.
_OPTIONS: dict[str, str | None] = {
    "timing_bundle": "--timing-bundle",
    "time_scale": "--time-scale",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "max_model_len": "--max-model-len",
    "output_tokens_mean": "--output-tokens-mean",
    "seed": "--seed",
    "enable_prefix_caching": "--enable-prefix-caching",
    "runner": None,
    "convert": None,
}


def simulated_command(config: EngineConfig) -> list[str]:
    """The command that serves one instance. Raises InputError for an unknown argument."""
    where = f"{config.instance_id}: engine_args"
    unknown = [key for key in config.engine_args if key not in _OPTIONS]
    if unknown:
        raise InputError(
            f"{where}: {unknown[0]!r} is not known to the simulated engine; known: "
            f"{', '.join(_OPTIONS)}"
        )
    if "timing_bundle" not in config.engine_args:
        raise InputError(
            f"{where}: timing_bundle is missing; name the bundle whose timing to follow"
        )
    line = [sys.executable, "-m", "scepsy_hpc.engines.simulated.command", "--model", config.model]
    line += ["--served-model-name", *config.served_names]
    line += ["--host", config.host, "--port", str(config.port)]
    line += ["--tensor-parallel-size", str(config.tp_degree)]
    line += ["--gpu-share-pct", str(config.gpu_share_pct)]
    if config.max_queued is not None:
        line += ["--max-num-queued-reqs", str(config.max_queued)]
    for key, value in config.engine_args.items():
        option = _OPTIONS[key]
        if isinstance(value, bool):
            if option is not None:
                line.append(option if value else option.replace("--", "--no-", 1))
        elif option is not None:
            # With "=", a value that begins with a dash cannot be taken for an option.
            line.append(f"{option}={value}")
    return line


def _count(text: str, most: float = math.inf) -> int:
    value = int(text)
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"must be 1 to {most:g}; got {text}")
    return value


def _share(text: str) -> int:
    return _count(text, 100)


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0; got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scepsy_hpc.engines.simulated.command",
        description="OpenAI-compatible server that computes nothing; its timing follows a bundle.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="model to pretend to be")
    add("--served-model-name", nargs="+", help="names it answers to (default: the model)")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=_count, default=8000, help="port to listen on")
    add("--timing-bundle", type=Path, required=True, help="bundle folder whose timing to follow")
    add("--tensor-parallel-size", type=_count, default=1, help="TP degree")
    add(
        "--gpu-share-pct",
        type=_share,
        default=100,
        help="share of each GPU, in percent",
    )
    add("--time-scale", type=_positive_float, default=1.0, help="every step lasts this much longer")
    add("--max-num-seqs", type=_count, help="sequences in a batch")
    add("--max-num-batched-tokens", type=_count, help="token budget of a step")
    add("--max-model-len", type=_count, default=131_072, help="longest context")
    add("--max-num-queued-reqs", type=_count, help="answer 503 when as many are waiting")
    add(
        "--output-tokens-mean",
        type=_positive_float,
        default=200.0,
        help="mean length of an answer whose length the caller leaves open",
    )
    add(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what was computed for prompts that begin alike",
    )
    add("--seed", type=int, default=0, help="of lengths and words")
    add("--api-key-env", default=API_KEY_VARIABLE, help="variable that holds the API key, if any")
    return parser


def serve_from_command_line() -> int:
    """Serve until a signal; returns the exit code."""
    options = _parser().parse_args()
    try:
        from scepsy_hpc.engines.simulated import server  # late: command() needs no HTTP
        from scepsy_hpc.engines.simulated.settings import settings_of, settings_text

        settings = settings_of(options)
        print(settings_text(settings), flush=True)
        server.serve_engine(settings, options.host, options.port)
    except ScepsyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(serve_from_command_line())
