"""What the files on a cell's way are, and what is worth telling about each kind."""

from __future__ import annotations

from typing import Any

from uad.audit.recompute import PUBLISHED
from uad.core.files import read_json
from uad.core.records import EXTERNAL, Record, Records

#: Kinds of nodes, from the cell to the source of the raw data.
STAGES = (
    *("cell", "published", "metrics", "threshold", "maps", "reconstructions", "weights", "air"),
    *("split", "list", "store", "registered", "transform", "brain mask", "participants"),
    *("atlas", "raw", "source", "other"),
)
#: What the outputs of a rule are; a rule that is not here makes nodes of the kind ``other``.
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
    if stage == "store":
        return stage, {"dataset": dataset, "modality": modality}
    return stage, {"dataset": name.partition(".")[0]} if stage == "participants" else {}


def facts_of(stage: str, record: Record, records: Records) -> dict[str, Any]:
    """What is worth telling about a file of a stage, from its job's record and its content."""
    content, facts, params = record.content, record.content["facts"], record.params

    def of_first(*names: str) -> dict[str, Any]:
        written = read_json(records.path(record.outputs[0].key))
        return {name: written[name] for name in names}

    if stage == "threshold":
        return of_first("threshold", "method", "subjects")
    if stage == "air":
        told = of_first("invert", "rule", "reference_dataset", "air_before", "air_after", "sets")
        decisive = told.pop("sets")[told["reference_dataset"]]
        return {**told, "subjects": decisive["subjects"]}
    if stage == "weights":
        return {
            "seed": content["seeds"].get("job"),
            "epochs": params.get("loop", {}).get("epochs"),
            **{name: facts.get(name) for name in ("weights_of_epoch", "steps", "resumed")},
            "device": content["host"]["device"],
            "seconds": content["seconds"],
        }
    if stage == "reconstructions":
        return {**_chosen(facts, "volumes", "t_test"), "device": content["host"]["device"]}
    if stage == "maps":
        return _chosen(params, "score")
    if stage == "split":
        return _chosen(params.get("splits", {}), "kind", "seed")
    if stage == "list":
        return _chosen(facts, "url", "checksum", "verified")
    if stage == "atlas":
        key = next(output.key for output in record.outputs if output.key.endswith(".json"))
        written = read_json(records.path(key))
        return {name: written[name] for name in ("name", "source")}
    if stage == "participants":
        spec = params.get("dataset", {})
        reviewed = {scan["subject"] for scan in spec.get("reviewed", [])}
        return {
            "source": spec.get("source"),
            "folder": params.get("root"),
            "scans": facts.get("scans"),
            "left_out": sorted({*spec.get("exclude", {}), *reviewed}),
        }
    if stage == "source" and record.rule == "make_phantom":
        phantom = params["dataset"]["phantom"]
        return {"kind": "phantom", "seed": content["seeds"].get("job"), **phantom}
    if stage == "source":
        names = ("name", "url", "checksum", "verified")
        files = [_chosen(file, *names) for file in of_first("files")["files"]]
        return {"kind": "download", "files": files}
    return {}


def _chosen(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: content[name] for name in names if name in content}
