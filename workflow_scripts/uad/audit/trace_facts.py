"""What the files on a cell's way are, and what is worth telling about each kind."""

from __future__ import annotations

from typing import Any

from uad.audit.recompute import PUBLISHED
from uad.core.files import read_json, read_tsv
from uad.core.records import EXTERNAL, Record, Records

#: Kinds of nodes, from the cell to the source of the raw data.
STAGES = (
    *("cell", "published", "metrics", "threshold", "maps", "reconstructions", "weights", "air"),
    *("split", "list", "store", "registered", "transform", "brain mask", "participants"),
    *("atlas", "raw", "source", "other"),
)
#: What the outputs of a rule are; those of a rule that is not here are ``other``.
_OF_RULE = {
    "make_table": "cell",
    "make_metrics_table": "cell",
    "evaluate_volumes": "metrics",
    "search_threshold": "threshold",
    "score_volumes": "maps",
    "reconstruct_volumes": "reconstructions",
    "train_model": "weights",
    "compute_air": "air",
    "make_splits": "split",
    "fetch_split_list": "list",
    "pack_slices": "store",
    "register_scan": "registered",
    "skullstrip_scan": "brain mask",
    "predict_brain_masks": "brain mask",
    "index_dataset": "participants",
    "prepare_atlas": "atlas",
    "download_atlas": "source",
    "make_phantom": "source",
    "download_dataset": "source",
}
#: What a file is, by its folder, where its record is lost; other folders are called as the stage.
_OF_FOLDER = {"thresholds": "threshold", "models": "weights", "splits": "split", "slices": "store"}
#: What is worth telling about a file, by stage: where it stands in its job's record, or in the JSON
#: that the job has written. A fact is called as the last part of its place.
_FACTS = {
    "threshold": "written.threshold written.method written.subjects",
    "air": "written.invert written.rule written.reference_dataset written.air_before "
    "written.air_after",
    "weights": "seeds.seed params.loop.epochs facts.weights_of_epoch facts.steps facts.resumed "
    "host.device seconds",
    "reconstructions": "facts.volumes facts.t_test host.device",
    "maps": "params.score",
    "split": "params.splits.kind params.splits.seed",
    "list": "facts.url facts.checksum facts.verified",
    "atlas": "written.name written.source",
    "participants": "params.dataset.source params.folder facts.scans",
}


def stage_of(key: str, record: Record | None) -> tuple[str, dict[str, str]]:
    """Stage of a file, and its place: by the record of its job, else by its name."""
    if record is not None:
        stage = "transform" if key.endswith(".mat") else _OF_RULE.get(record.rule, "other")
        return stage, dict(record.wildcards)
    if key == PUBLISHED:
        return "published", {}
    if key.startswith(("raw/", EXTERNAL)):
        source = key.endswith((".manifest.tsv", ".download.json"))
        return "source" if source else "raw", {}
    folder, _, name = key.partition("/")
    stage = _OF_FOLDER.get(folder, folder if folder in STAGES else "other")
    dataset, _, modality = name.partition(".")[0].rpartition("_")
    return stage, {"dataset": dataset, "modality": modality} if stage == "store" else {}


def facts_of(stage: str, record: Record, records: Records) -> dict[str, Any]:
    """What is worth telling about a file of a stage, from its job's record and its content."""
    content, params, seed = record.content, record.params, record.content["seeds"].get("job")
    content = {
        **content,
        "seeds": {"seed": seed},
        "params": {**params, "folder": params.get("root")},
    }
    written = next((e.key for e in record.outputs if e.key.endswith(".json")), None)
    if written and stage in ("threshold", "air", "atlas", "source"):
        content["written"] = read_json(records.path(written))
    found: dict[str, Any] = {}
    if stage == "split":
        table = read_tsv(records.path(record.outputs[0].key))
        counts = table.groupby(["dataset", "role"], sort=False).size()
        found["sizes"] = {
            name: part[name].to_dict() for name, part in counts.groupby(level=0, sort=False)
        }
    for place in _FACTS.get(stage, "").split():
        value = content
        for name in place.split("."):
            value = (value or {}).get(name)
        found[place.rpartition(".")[2]] = value
    if stage == "air":
        found["subjects"] = content["written"]["sets"][found["reference_dataset"]]["subjects"]
    elif stage == "participants":
        spec = params.get("dataset", {})
        reviewed = {scan["subject"] for scan in spec.get("reviewed", [])}
        files = content["facts"].get("left_out", {}).get("files", {})
        found["left_out"] = sorted({*spec.get("exclude", {}), *reviewed, *files})
    elif stage == "source" and record.rule == "make_phantom":
        found = {"kind": "phantom", "seed": seed, **params["dataset"]["phantom"]}
    elif stage == "source":
        names = ("name", "url", "checksum", "verified")
        files = [{n: file[n] for n in names if n in file} for file in content["written"]["files"]]
        found = {"kind": "download", "files": files}
    return found
