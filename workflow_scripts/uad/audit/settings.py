"""What the params of a job should be by the config: the settings that results depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uad.config import Config, Experiment
from uad.core.records import Record

#: Stands for what the config does not have at all.
UNKNOWN = "not in the config"


def expected(cfg: Config, record: Record) -> dict[str, Any]:
    """Params of a job as the config has them; only those that can be told from it.

    Args:
        cfg: the config of the run.
        record: the job; its wildcards say which part of the config is meant.
    """
    common = {"seed": cfg.seed, "phantom": cfg.phantom}
    found = {name: value for name, value in common.items() if name in record.params}
    if record.rule not in _RULES:
        return found
    try:
        found |= _RULES[record.rule](cfg, record.wildcards)
        if reviewed := record.params.get("dataset", {}).get("reviewed"):
            # from the reviewer's decisions, which are no part of the config
            found["dataset"]["reviewed"] = reviewed
        if record.params.get("skullstrip"):  # empty where no network is used in this job
            found["skullstrip"] = _network(cfg, record.wildcards)["network"]
    except KeyError as error:
        found |= {str(error.args[0]): UNKNOWN}
    return found


def _plain(part: Any) -> dict[str, Any]:
    return part.model_dump(mode="json")


def _some(part: Any, *names: str) -> dict[str, Any]:
    content = _plain(part)
    return {name: content[name] for name in names}


def _model(cfg: Config, method: str) -> dict[str, Any]:
    return _some(cfg.models[cfg.methods[method].model], "family", "options")


def _phantom(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    return {"dataset": _some(cfg.datasets[names["dataset"]], "layout", "modalities", "phantom")}


def _index(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    keys = "layout source modalities exclude limit".split()
    return {"dataset": _some(cfg.datasets[names["dataset"]], *keys)}


def _atlas(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    return {"spacing": cfg.preprocessing.spacing, "atlas": cfg.preprocessing.atlas}


def _skullstrip(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    # the job of a scan has the options of a network only where no batch was predicted for it
    return {"backend": cfg.backend_of(names["dataset"])}


def _network(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    network = _some(cfg.preprocessing.skullstrip, "mode", "tta", "device")
    return {"backend": cfg.backend_of(names["dataset"]), "network": network}


def _noise_field(cfg: Config, method: str) -> str:
    return cfg.protocol.noise_field if cfg.family_of(method).noisy else "per_batch"


def _data(cfg: Config, experiment: Experiment) -> dict[str, Any]:
    data = _some(experiment, "setting", "train")
    if experiment.setting == "intra":
        data["intra_slices"] = cfg.protocol.intra_slices
    return data


def _register(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    return {
        "spacing": cfg.preprocessing.spacing,
        "n4": _plain(cfg.preprocessing.n4),
        "lesion_interpolation": cfg.protocol.lesion_interpolation,
    }


def _pack(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    keys = "spacing field_of_view shape percentiles".split()
    return {
        "preprocessing": _some(cfg.preprocessing, *keys),
        "curvature_flow": cfg.protocol.curvature_flow,
    }


def _splits(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    experiment = cfg.experiments[names["experiment"]]
    layouts = {name: cfg.datasets[name].layout for name in (experiment.train, *experiment.test)}
    kept = _some(experiment, "setting", "modality", "train", "test", "folds")
    return {"experiment": {**kept, "layouts": layouts}, "splits": _split_sizes(cfg, experiment)}


def _split_sizes(cfg: Config, experiment: Experiment) -> dict[str, Any]:
    content = _plain(cfg.splits)
    if experiment.setting == "intra":
        return {name: content[name] for name in ("kind", "seed")}
    if cfg.splits.kind == "reference":
        return {name: content[name] for name in ("kind", "reference")}
    del content["reference"]
    sizes = content["unhealthy_validation"]
    content["unhealthy_validation"] = {t: sizes[t] for t in experiment.test if t in sizes}
    return content


def _air(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    experiment = cfg.experiments[names["experiment"]]
    return {
        "modality": experiment.modality,
        "tests": list(experiment.test),
        "reference": cfg.air_reference_of(names["experiment"]),
        "rule": cfg.protocol.air_rule,
    }


def _train(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    method = cfg.methods[names["method"]]
    loop = cfg.train_of(names["method"])
    return {
        "model": _model(cfg, names["method"]),
        "loss": method.loss,
        "air": method.air,
        "quality": cfg.quality_of(names["method"], method.loss),
        "loop": loop.model_dump(mode="json", exclude=set(loop.HOW)),
        "seed_name": cfg.seed_name_of(names["method"]),
        "data": _data(cfg, cfg.experiments[names["experiment"]]),
        "noise_field": _noise_field(cfg, names["method"]),
        "keep": cfg.protocol.checkpoint,
        "draw": cfg.protocol.validation_draw,
    }


def _reconstruct(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    noise_field = _noise_field(cfg, names["method"])
    slices = None if noise_field == "per_batch" else cfg.train_of(names["method"]).inference_batch
    return {
        "noise_field": noise_field,
        "batch": slices,
        "model": _model(cfg, names["method"]),
        "air": cfg.methods[names["method"]].air,
        "t_test": cfg.protocol.t_test_of(names["experiment"], names["test"]),
        "seed_name": cfg.seed_name_of(names["method"]),
    }


def _score(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    method, protocol = cfg.methods[names["method"]], cfg.protocol
    return {
        "score": method.score,
        "air": method.air,
        "quality": cfg.quality_of(names["method"], method.score),
        "postprocessing": {
            "erosion": protocol.erosion,
            "median": protocol.median,
            "order": protocol.postprocessing_order,
        },
    }


def _threshold(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    return {"search": cfg.protocol.threshold_search}


def _evaluate(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    return {"component_max_size": cfg.protocol.component_max_size}


def _rescore(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    variants = cfg.variants_of(names["study"], names["method"])
    return {"air": cfg.methods[names["method"]].air, "variants": variants}


def _table(cfg: Config, names: dict[str, str]) -> dict[str, Any]:
    return {"table": _plain(cfg.tables[names["table"]]), "protocol": cfg.protocol.preset}


_RULES: dict[str, Callable[[Config, dict[str, str]], dict[str, Any]]] = {
    "make_phantom": _phantom,
    "index_dataset": _index,
    "prepare_atlas": _atlas,
    "predict_brain_masks": _network,
    "skullstrip_scan": _skullstrip,
    "register_scan": _register,
    "pack_slices": _pack,
    "make_splits": _splits,
    "compute_air": _air,
    "train_model": _train,
    "reconstruct_volumes": _reconstruct,
    "score_volumes": _score,
    "search_threshold": _threshold,
    "evaluate_volumes": _evaluate,
    "rescore_volumes": _rescore,
    "make_table": _table,
}
