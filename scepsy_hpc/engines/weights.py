"""Weights on disk: where a model's folder is, whether it is complete, how large it is."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from scepsy_hpc.cluster.site import Site, expanded
from scepsy_hpc.errors import InputError
from scepsy_hpc.formats.workflow import EngineArgs

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "*.tiktoken")
# Forms that an engine passes over where there is safetensors.
_OTHER_FORMS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_OTHER_FOLDERS = ("original", "onnx")
_MOST_HEADER_BYTES = 100_000_000


def find_model(model: str, site: Site, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of a model: itself, one of the site's weights, or of the Hugging Face cache.

    None where it is in none of them. Raises InputError for a path that is no folder, and where the
    site's weights folder lacks it.
    """
    if model.startswith(("/", "~", ".")):
        found = Path(model).expanduser()
        if not found.is_dir():
            raise InputError(f"model {model}: is no folder on this machine")
        return found
    if site.weights is not None:
        root = Path(expanded(site.weights.folder, "weights.folder"))
        if not root.is_dir():
            raise InputError(f"site: weights.folder: {root} is no folder on this machine")
        inside = _below(root, model)
        if inside is None:
            raise InputError(
                f"model {model}: site: weights.folder: {root} has neither {model} nor "
                f"{model.replace('/', '__')}; put the weights there, for example with "
                f"`hf download {model} --local-dir {root / model}`"
            )
        return inside
    return _below(_hub_cache(environ), model)


def _below(root: Path, model: str) -> Path | None:
    """`org/name`, `org__name`, or the newest snapshot of a Hugging Face cache."""
    for name in (model, model.replace("/", "__"), model.rpartition("/")[2]):
        if (root / name / "config.json").exists():
            return root / name
    cached = root / f"models--{model.replace('/', '--')}"
    main = cached / "refs" / "main"
    if main.is_file():
        named = cached / "snapshots" / main.read_text().strip()
        if named.is_dir():
            return named
    # A folder without config.json is still where the user put it: what it lacks is named later.
    plain = root / model
    return plain if plain.is_dir() else None


def _hub_cache(environ: Mapping[str, str]) -> Path:
    home = Path(environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    return Path(environ.get("HF_HUB_CACHE") or home / "hub")


def check_model_folder(folder: Path, engine_args: EngineArgs | None = None) -> None:
    """Raise InputError that names the first thing that a model's folder lacks.

    With ``load_format: dummy`` no weights are needed; a ``tokenizer`` of its own may lie elsewhere.
    """
    given = {key.strip("-").replace("-", "_"): value for key, value in (engine_args or {}).items()}
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{folder}: config.json: missing; copy the whole model folder")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{config}: cannot be read: {error}; copy it anew") from None
    elsewhere = given.get("tokenizer") or given.get("skip_tokenizer_init")
    if not elsewhere and not any(any(folder.glob(name)) for name in TOKENIZERS):
        raise InputError(
            f"{folder}: no tokenizer ({', '.join(TOKENIZERS)}); copy it too, or name one with "
            "engine_args.tokenizer"
        )
    if given.get("load_format") != "dummy":
        _check_weights(folder)


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _indexed(index)
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        if not names and any(path.suffix in _OTHER_FORMS for path in folder.iterdir()):
            return  # an older form, without an index that could be checked
    if not names:
        raise InputError(f"{folder}: no *.safetensors; copy the weights there")
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        raise InputError(
            f"{folder}: {len(lacking)} of {len(names)} files of weights are missing, first "
            f"{lacking[0]}; copy them there"
        )
    for name in names:
        _check_whole(folder / name)


def _indexed(index: Path) -> list[str]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(name) for name in named})
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: is no index of weights ({error}); copy it anew") from None


def _check_whole(path: Path) -> None:
    """A copy that was cut short is smaller than its own header says."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size, _MOST_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        wanted = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, struct.error) as error:
        raise InputError(f"{path}: is no whole safetensors file ({error}); copy it anew") from None
    if size != wanted:
        raise InputError(f"{path}: has {size} bytes, its header says {wanted}; copy it anew")


def models_in(root: Path) -> dict[str, Path]:
    """Folders of models below a weights folder, by name: one or two levels down, and in a cache."""
    found: dict[str, Path] = {}
    for pattern in ("*/config.json", "*/*/config.json", "models--*/snapshots/*/config.json"):
        for config in sorted(root.glob(pattern)):
            folder = config.parent
            name = str(folder.relative_to(root))
            if name.startswith("models--"):
                name = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
            elif name.startswith("."):
                continue
            found[name] = folder
    return found


def files_of_model(folder: Path) -> dict[str, int]:
    """Size in bytes of every file that an engine may read, by its path below the folder.

    Hidden files, and other forms of the weights beside safetensors, are left out.
    """
    found = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
    if not any(name.endswith(".safetensors") for name in found):
        return found
    return {name: size for name, size in found.items() if not name.endswith(_OTHER_FORMS)}


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.name not in _OTHER_FOLDERS:
                yield from _files(path)
        elif path.is_file():
            yield path
