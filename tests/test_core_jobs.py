"""Room on the disk, and what a failing script says."""

import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest

from uad.core import provenance
from uad.core.errors import DataError
from uad.core.files import atomic_path, read_json, sha256, write_json
from uad.core.nifti import open_volume
from uad.core.provenance import job, record_digest
from uad.core.records import load_records
from uad.core.seeds import derive_seed
from uad.run.room import check_room, planned_bytes

# --- room on the disk

PLAN = {
    "b": {
        "layout": "ixi",
        "source": "phantom",
        "phantom": {"subjects": 100, "spacing": 1.0},
        "modalities": ["T1", "T2"],
    }
}
GRID = {"spacing": 1.0, "shape": [96, 96, 50]}


def test_planned_bytes_grow_with_subjects_modalities_and_resolution():
    planned = planned_bytes(PLAN, GRID)["b"]
    assert 100 * 2 * 30e6 < planned < 100 * 2 * 100e6
    coarse = planned_bytes(PLAN, {"spacing": 2.0, "shape": [48, 48, 25]})["b"]
    assert coarse < planned


def test_a_disk_without_room_is_refused_before_any_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10e9, 9e9, 1e9))
    with pytest.raises(DataError, match=r"need about \d+\.\d GB \(b .*only 1\.0 GB are free"):
        check_room(tmp_path, planned_bytes(PLAN, GRID))
    assert check_room(tmp_path, {"b": 10})["planned_bytes"] == {"b": 10}


# --- files, seeds, jobs


def test_a_file_is_whole_or_absent(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(target) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError):
        write_json(target, float("nan"))


def test_seeds_differ_by_any_part_and_never_by_the_machine():
    assert derive_seed(1, "cross_T2", "pddpm", 0) == 331686624
    parts = [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1), ("1a", 0)]
    assert len({derive_seed(*p) for p in parts}) == len(parts)


def snakemake_like(tmp_path, rule="some_rule"):
    return SimpleNamespace(
        rule=rule,
        log=[str(tmp_path / "some.log")],
        input=[str(tmp_path / "in.txt")],
        output=[str(tmp_path / "out.txt")],
        params=dict(p=1),
        wildcards=dict(w="x"),
        threads=1,
    )


def test_a_message_names_a_path_once(tmp_path):
    path, damaged = tmp_path / "none.nii.gz", tmp_path / "a.nii.gz"
    damaged.write_bytes(b"")
    try:
        path.read_bytes()
    except OSError as error:
        message = str(DataError(f"{path}: cannot be read ({error})."))
    assert message == f"{path}: cannot be read (No such file or directory)."
    with pytest.raises(DataError) as caught:
        open_volume(damaged)
    assert str(caught.value).count("a.nii.gz") == 1 and "Empty file" in str(caught.value)


def test_a_script_stops_beside_the_library_of_another_copy(tmp_path, capfd):
    snakemake = snakemake_like(tmp_path)
    snakemake.scriptdir = str(tmp_path)
    with pytest.raises(SystemExit), job(snakemake):
        raise AssertionError("it began")
    assert "this is the library of another copy; the script is in" in capfd.readouterr().err
    assert not (tmp_path / "out.txt.prov.json").exists()


def test_a_script_that_succeeds_leaves_a_record_of_what_went_in_and_out(tmp_path, capfd):
    (tmp_path / "in.txt").write_text("in")
    with job(snakemake_like(tmp_path)) as context:
        (tmp_path / "out.txt").write_text("out")
        context.facts["seed"] = 3
    record = read_json(tmp_path / "out.txt.prov.json")
    assert record["rule"] == "some_rule" and record["facts"] == {"seed": 3}
    assert record["inputs"][0]["bytes"] == 2 and len(record["outputs"][0]["sha256"]) == 64
    assert record["code"]["library_files"]["core/provenance.py"]
    assert record["environment"]["numpy"] and len(record["environment"]["lock_sha256"]) == 64
    assert record["seeds"] == {"job": 3}
    assert record["record_sha256"] == record_digest(record)


def test_an_edit_while_a_job_runs_is_not_taken_for_what_it_ran(tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("in")
    script = tmp_path / "some_rule.py"
    script.write_text("what runs")
    monkeypatch.setattr(provenance, "SCRIPTS", tmp_path)
    with job(snakemake_like(tmp_path)) as context:
        (tmp_path / "out.txt").write_text("out")
        before = sha256(script)
        script.write_text("what was edited")
        context.library |= {"core/records.py"}  # a notebook's kernel loaded it
    code = read_json(tmp_path / "out.txt.prov.json")["code"]
    assert code["script_sha256"] == before and "core/records.py" in code["library_files"]


def test_a_script_that_fails_says_so_once_and_is_never_a_success(tmp_path, capfd):
    ends = {
        DataError("scan.nii.gz: is empty."): "ERROR in rule some_rule: scan.nii.gz: is empty.\n",
        SystemExit(0): "Ended by a signal; run the same command again to go on.\n",
    }
    for error, said in ends.items():
        (tmp_path / "out.txt.prov.json").write_text("of an earlier run")
        with pytest.raises(SystemExit) as end, job(snakemake_like(tmp_path)):
            raise error
        assert end.value.code == 1
        assert (tmp_path / "some.log").read_text() == said
        assert not (tmp_path / "out.txt.prov.json").exists()


def test_a_record_that_is_being_written_is_not_read(tmp_path):
    (tmp_path / "in.txt").write_text("in")
    with job(snakemake_like(tmp_path)):
        (tmp_path / "out.txt").write_text("out")
    (tmp_path / ".tmp-other-1-x.txt.prov.json").write_text('{"format": ')
    (tmp_path / "y.txt.prov.json").write_text('{"format": ')
    records = load_records(tmp_path)
    assert list(records.all) == ["out.txt.prov.json"]
    assert records.broken == {"y.txt.prov.json": "is damaged"}
