"""Where a model's folder is, and what one lacks."""

from __future__ import annotations

import pytest
from model_folders import make_model, safetensors

from scepsy_hpc.cluster.site import Site, WeightsFolder
from scepsy_hpc.engines.weights import check_model_folder, files_of_model, find_model
from scepsy_hpc.errors import InputError

MODEL = "org/tiny-1B"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


def site_with(folder):
    return Site(weights=WeightsFolder(folder=str(folder)))


@pytest.mark.parametrize("name", [MODEL, "org__tiny-1B", "tiny-1B"])
def test_a_model_is_found_under_its_usual_names(tmp_path, name):
    """The weights folder may name a model as the plan does, with `__`, or without its owner."""
    made = make_model(tmp_path / name)
    assert find_model(MODEL, site_with(tmp_path)) == made


def test_a_hugging_face_cache_is_a_weights_folder_too(tmp_path):
    """The snapshot that `main` names is taken; without a site the user's own cache is looked at."""
    cached = tmp_path / "models--org--tiny-1B"
    make_model(cached / "snapshots" / "old")
    made = make_model(cached / "snapshots" / "new")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("new\n")
    assert find_model(MODEL, site_with(tmp_path)) == made
    assert find_model(MODEL, Site(), {"HF_HUB_CACHE": str(tmp_path)}) == made
    assert find_model("org/other", Site(), {"HF_HUB_CACHE": str(tmp_path)}) is None


def test_a_missing_model_says_where_it_was_looked_for(tmp_path):
    """A weights folder without the model, a folder that is none: one line with the fix."""
    with pytest.raises(InputError, match=rf"{tmp_path} has neither org/tiny-1B nor .*hf download"):
        find_model(MODEL, site_with(tmp_path))
    with pytest.raises(InputError, match=r"weights\.folder: .*gone is no folder"):
        find_model(MODEL, site_with(tmp_path / "gone"))
    with pytest.raises(InputError, match="is no folder on this machine"):
        find_model(str(tmp_path / "gone"), Site())


def test_a_whole_model_passes(tmp_path):
    """Index and files agree; a single file without an index will do as well."""
    check_model_folder(make_model(tmp_path / "whole"))
    one = make_model(tmp_path / "one", num_files=1)
    (one / "model.safetensors.index.json").unlink()
    check_model_folder(one)


def test_what_is_missing_is_named(tmp_path):
    """No config, no tokenizer, a file of the index gone: named, with what to do."""
    for number, (gone, said) in enumerate(
        [
            ("config.json", "config.json: missing"),
            ("tokenizer.json", "no tokenizer"),
            (SECOND, f"1 of 2 files of weights are missing, first {SECOND}"),
        ]
    ):
        folder = make_model(tmp_path / str(number))
        (folder / gone).unlink()
        with pytest.raises(InputError, match=said):
            check_model_folder(folder)


def test_a_copy_cut_short_is_noticed(tmp_path):
    """A file smaller than its own header says, or no safetensors at all, is named."""
    folder = make_model(tmp_path / "m")
    (folder / SECOND).write_bytes(safetensors(1000)[:-1])
    with pytest.raises(InputError, match=rf"{SECOND}: has \d+ bytes, its header says \d+"):
        check_model_folder(folder)
    (folder / SECOND).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match="is no whole safetensors file"):
        check_model_folder(folder)


def test_random_weights_need_no_files(tmp_path):
    """With `load_format: dummy` only config and tokenizer are wanted."""
    folder = make_model(tmp_path / "m")
    for path in folder.glob("model*"):
        path.unlink()
    check_model_folder(folder, {"load-format": "dummy"})
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        check_model_folder(folder)


def test_only_what_an_engine_reads_is_counted(tmp_path):
    """Hidden files, the original checkpoint and older forms beside safetensors are left out."""
    folder = make_model(tmp_path / "m", num_bytes=10)
    for name in (".cache/x", "original/y.pth", "pytorch_model.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"12345")
    (folder / "sub").mkdir()
    (folder / "sub" / "template.jinja").write_bytes(b"123")
    found = files_of_model(folder)
    assert found["sub/template.jinja"] == 3
    assert {FIRST, SECOND, "config.json"} < set(found)
    assert not {".cache/x", "original/y.pth", "pytorch_model.bin"} & set(found)
