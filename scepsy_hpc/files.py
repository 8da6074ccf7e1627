"""Strict files at the border, frozen records inside; writes are atomic.

A *record* is a frozen dataclass that pydantic can check: unknown keys, wrong types and NaN are
refused with one line that names the file, the key or line, the value and what is allowed.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from scepsy_hpc.errors import InputError

T = TypeVar("T")

# Fields of records: numbers above zero, whole numbers from one on.
Positive = typing.Annotated[float, Field(gt=0)]
Count = typing.Annotated[int, Field(ge=1)]


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, slotted, keyword-only dataclass whose unknown keys are errors."""
    made = dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(cls)
    made.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return made


def extended(cls: type[T], base: Any, **more: Any) -> T:
    """A record with the fields that it shares with ``base``, and ``more``."""
    names = [f.name for f in _fields(cls) if hasattr(base, f.name)]
    return cls(**{name: getattr(base, name) for name in names} | more)


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def check(data: Any, cls: type[T], where: str) -> T:
    """Turn plain data into a record of type ``cls``.

    Raises InputError: one line that starts with ``where`` and names the key, its value and what
    is allowed.
    """
    try:
        text = json.dumps(data, default=str)
        return typing.cast(T, _adapter(typing.cast(Any, cls)).validate_json(text, strict=True))
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, cls)}") from None


def _explain(error: ValidationError, cls: Any) -> str:
    # An unknown key first: the key that is "missing" beside it is most often its right spelling.
    problems = sorted(error.errors(include_url=False), key=lambda e: "unexpected" not in e["type"])
    first = problems[0]
    path, kind = first["loc"], first["type"]
    # A union reports one error per member, with the member's name inside the path.
    keys = [part for part in path if not str(part).startswith(("function-", "constrained-"))]
    key = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys).lstrip(".") or "file"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = ", ".join(_known_keys(cls, keys[:-1])) or "none here"
        return f"{key}: unknown key; known keys: {known}{more}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key}: missing; add this key{more}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}; got {_short(first['input'])}{more}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(cls: Any, path: Iterable[int | str]) -> list[str]:
    """Field names of the dataclass at ``path`` below ``cls``; empty when there is none."""
    here = [cls]
    for part in path:
        here = [inner for option in here for inner in _step(option, part)]
    names = [f.name for option in here for f in _fields(option)]
    return list(dict.fromkeys(names))


def _step(cls: Any, part: int | str) -> list[Any]:
    if isinstance(cls, types.UnionType) or typing.get_origin(cls) is typing.Union:
        return [inner for option in typing.get_args(cls) for inner in _step(option, part)]
    if dataclasses.is_dataclass(cls):
        hint = typing.get_type_hints(cls).get(str(part))
        if hint is None:
            return [cls] if part == getattr(cls, "__name__", None) else []
        return _options(hint)
    inner = [a for a in typing.get_args(cls) if a is not Ellipsis]
    return _options(inner[-1]) if inner else []


def _options(hint: Any) -> list[Any]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [a for a in typing.get_args(hint) if a is not type(None)]
    return [hint]


def _fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def to_plain(value: Any) -> Any:
    """Records to dicts and lists, leaving out None and empty defaults, ready for YAML or JSON.

    An empty list where the default is another (no GPU is free, not all are) stays.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if item is None or (item in ((), {}) and item == _default(field)):
                continue
            plain[field.name] = to_plain(item)
        return plain
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # numpy scalars
        return value.item()
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def read_text(path: Path | str) -> str:
    """The text of a file. Raises InputError when it is missing, a folder, or not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: cannot be read: {reason}") from None


def read_yaml_data(path: Path | str) -> Any:
    """Plain data of a YAML file. Raises InputError with the line when it does not parse."""
    try:
        return yaml.load(read_text(path), Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise InputError(f"{path}:{line} {problem}") from None


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The fast safe loader where libyaml is there, refusing a key that stands twice.

    YAML would silently keep the last.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else repr(key))
        return dict(super().construct_mapping(node, deep=deep))


def read_yaml(path: Path | str, cls: type[T], schema: str) -> T:
    """Read a YAML file whose ``schema`` key must be ``schema`` into a record.

    ``cls`` may declare a field ``schema``; otherwise the key is taken off before the check.
    Raises InputError.
    """
    data = read_yaml_data(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: must be a mapping with `schema: {schema}`, is {_short(data)}")
    found = data.pop("schema", None)
    if found != schema:
        raise InputError(f"{path}: schema: must be {schema!r}, is {found!r}")
    return check(data, cls, str(path))


def write_yaml(path: Path | str, value: Any, schema: str) -> None:
    """Write a record as YAML, atomically, with the ``schema`` key first."""
    plain = {"schema": schema, **to_plain(value)}
    text = yaml.safe_dump(plain, sort_keys=False, width=100, allow_unicode=True)
    write_text(path, text)


def read_csv(path: Path | str, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line and cells, stripped, of each row of a table; empty rows are passed over.

    Raises InputError: a required column is missing, one stands twice, a row is of another length.
    """
    reader = csv.reader(io.StringIO(read_text(path)))
    columns = [name.strip() for name in next(reader, [])]
    for name in columns:
        if columns.count(name) > 1:
            raise InputError(f"{path} line 1: column {name!r} stands twice")
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(
            f"{path} line 1: column {missing[0]!r} is missing; required columns: "
            f"{', '.join(required)}"
        )
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path} line {reader.line_num}"
        if len(cells) != len(columns):
            raise InputError(f"{where}: has {len(cells)} cells, the header has {len(columns)}")
        named = zip(columns, (cell.strip() for cell in cells), strict=True)
        rows.append((reader.line_num, dict(named)))
    return rows


_KEY = re.compile(r'(?<!\\)"(\w+)"\s*:')


def _refuse_twice(line: str, where: str) -> None:
    """Of a key that stands twice in one object JSON readers take the last without a word."""
    keys = _KEY.findall(line)
    if len(keys) == len(set(keys)):
        return  # most lines

    def look(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{where}: {name}: stands twice; keep one")

    with contextlib.suppress(ValueError, RecursionError):  # told by whoever reads it
        json.loads(line, object_pairs_hook=look)


def read_jsonl(path: Path | str, cls: type[T]) -> list[T]:
    """Read JSON lines into records. Raises InputError that names the line."""
    return parse_jsonl(read_text(path), cls, path)


def parse_jsonl(text: str, cls: type[T], path: Path | str) -> list[T]:
    """The same of a text that was read from ``path``."""
    adapter = _adapter(typing.cast(Any, cls))
    found: list[T] = []
    for number, line in _lines(text):
        _refuse_twice(line, f"{path} line {number}")
        try:
            found.append(adapter.validate_json(line, strict=True))
        except ValidationError as error:
            raise InputError(f"{path} line {number}: {_explain(error, cls)}") from None
    return found


def read_jsonl_data(path: Path | str) -> list[dict[str, Any]]:
    """Read JSON lines as plain dicts, one a line. Raises InputError that names the line."""
    found = []
    for number, line in _lines(read_text(path)):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} line {number}: not JSON: {error.msg}") from None
        if not isinstance(value, dict):
            raise InputError(f"{path} line {number}: must be one JSON object, is {_short(value)}")
        found.append(value)
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def write_jsonl(path: Path | str, values: Iterable[Any]) -> None:
    """Write records or dicts as JSON lines, atomically."""
    write_text(path, "".join(json_line(v) for v in values))


def json_line(value: Any) -> str:
    """One record as one JSON line, newline included; all outside ASCII is escaped.

    Lines end with `\\n` only: other ends of lines that Unicode knows may stand in a text. Half a
    surrogate pair, which no strict reader takes back, becomes U+FFFD.
    """
    plain = to_plain(value)
    line = json.dumps(plain)
    if "\\ud" in line:
        whole = re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(plain, ensure_ascii=False))
        line = json.dumps(json.loads(whole))
    return line + "\n"


def write_text(path: Path | str, text: str, mode: int = 0o644) -> None:
    """Write a UTF-8 file atomically, as :func:`write_bytes` does. Raises InputError."""
    write_bytes(path, text.encode(), mode)


def write_bytes(path: Path | str, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old bytes or the new, never a part.

    A link is followed. Raises InputError when the folder cannot be written, or what stands there is
    no plain file.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no plain file, and would be replaced; give another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def shipped_path(name: str) -> Path:
    """A folder shipped with the package (``profiles``, ``workflows``).

    An installed wheel carries it as package data; a checkout has it beside the package.
    """
    here = Path(__file__).resolve().parent
    packed = here / "data" / name
    return packed if packed.is_dir() else here.parent / name
