"""`bundle`: sharing bundles, and telling bad ones apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from command_cases import BUNDLE, error_lines

from scepsy_hpc.cli.main import run_line
from scepsy_hpc.formats.bundle import load_bundle
from scepsy_hpc.formats.points import POINTS_FILE

ROW_HEADS = (
    "gpu_type,engine,engine_version,model,tp_degree,input_tokens,output_tokens,concurrency,"
    "throughput_rps,ttft_s,tpot_s,latency_s\n"
)
ROW = "h100_sxm,vllm,0.24.0,Qwen/Qwen3-8B,1,100,10,1,0.5,0.1,0.2,2.0\n"


def test_bundles_travel_by_archive(tmp_path, capsys):
    """Export, verify, import and list: the points arrive byte by byte."""
    archive, there = tmp_path / "ours.tar.gz", tmp_path / "profiles"
    assert run_line(["bundle", "export", str(BUNDLE), "-o", str(archive), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["model"] == "Qwen/Qwen3-8B"
    assert run_line(["bundle", "verify", str(archive), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_bad"] == 0
    assert run_line(["bundle", "import", str(archive), "-o", str(there), "--json"]) == 0
    (taken,) = json.loads(capsys.readouterr().out)
    arrived = Path(taken["path"])
    assert (arrived / POINTS_FILE).read_bytes() == (BUNDLE / POINTS_FILE).read_bytes()
    assert run_line(["bundle", "list", str(there), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["num_points"] == len(load_bundle(BUNDLE).points)


def test_verify_goes_on_past_a_bad_bundle(tmp_path, capsys):
    """Exit code 1; the sound one and the bad one are both told, with the line."""
    for name in ("good", "bad"):
        shutil.copytree(BUNDLE, tmp_path / "profiles" / name)
    points = tmp_path / "profiles" / "bad" / POINTS_FILE
    points.write_text(points.read_text().replace(",closed,", ",clozed,", 1))
    assert run_line(["bundle", "verify", str(tmp_path / "profiles")]) == 1
    shown = capsys.readouterr()
    assert "good: sound" in shown.out
    assert "bad: points.csv line" in shown.out
    assert "1 of 2 bundles are bad" in shown.err


def test_an_archive_is_told_apart_from_a_table(tmp_path, capsys):
    """A CSV file needs --table, and a text file is no archive; nothing is written."""
    table, text, out = tmp_path / "a.csv", tmp_path / "a.tar.gz", tmp_path / "profiles"
    for path in (table, text):
        path.write_text("gpu_type,model\n")
    assert run_line(["bundle", "import", str(table), "-o", str(out)]) == 2
    assert "--table" in error_lines(capsys)[0]
    assert run_line(["bundle", "import", str(text), "-o", str(out)]) == 2
    assert "not a bundle archive" in error_lines(capsys)[0]
    assert run_line(["bundle", "import", "--table", "modelled", str(table), "-o", str(out)]) == 2
    assert "column 'engine' is missing" in error_lines(capsys)[0]
    assert not out.exists()


def test_rows_left_out_of_a_table_are_counted(tmp_path, capsys):
    """`bundle import --table` says how many rows became no point, and why; a missing file is 2."""
    table, out = tmp_path / "t.csv", tmp_path / "profiles"
    table.write_text(ROW_HEADS + 2 * ROW)
    line = ["bundle", "import", "--table", "silicon", str(table), "-o", str(out)]
    assert run_line(line) == 0
    assert "left out 1 rows: repeats an operating point" in capsys.readouterr().err
    assert run_line([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {"repeats an operating point": 1}
    table.unlink()
    assert run_line(line) == 2
    assert len(error_lines(capsys)) == 1


def test_bundles_with_other_points_are_replaced_on_purpose_only(tmp_path, capsys):
    """Import refuses to write over other points; --replace does it."""
    there = tmp_path / "profiles"
    archive, other = tmp_path / "a.tar.gz", tmp_path / "b.tar.gz"
    assert run_line(["bundle", "export", str(BUNDLE), "-o", str(archive)]) == 0
    table = tmp_path / "t.csv"
    table.write_text(ROW_HEADS + ROW)
    made = str(tmp_path / "made")
    assert run_line(["bundle", "import", "--table", "modelled", str(table), "-o", made]) == 0
    assert run_line(["bundle", "export", made, "-o", str(other)]) == 0
    assert run_line(["bundle", "import", str(archive), "-o", str(there)]) == 0
    capsys.readouterr()
    assert run_line(["bundle", "import", str(other), "-o", str(there)]) == 2
    assert "other points" in error_lines(capsys)[0]
    assert run_line(["bundle", "import", str(other), "-o", str(there), "--replace"]) == 0
    (header,) = there.rglob("bundle.yaml")
    assert len(load_bundle(header.parent).points) == 1
