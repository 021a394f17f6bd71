"""The params of each rule that follow from the config: what the rule reads, and no more.

A rule takes them from here (``**settings("train_model")``), and the audit compares the records of
finished jobs with them. Every function is called with the config and a job's wildcards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from uad.config.model import Config
from uad.core.patterns import layout_name, layout_of

Names = Mapping[str, str]
Param = Callable[[Config, Names], Any]


def _plain(section: Any, *keys: str) -> dict[str, Any]:
    """A section of the config as plain data; with keys only these."""
    content = section.model_dump(mode="json")
    return {key: content[key] for key in keys} if keys else content


# --- a value of one section, by its key


def _of_config(key: str) -> Param:
    return lambda cfg, names: getattr(cfg, key)


def _dataset(*keys: str) -> Param:
    return lambda cfg, names: _plain(cfg.datasets[names["dataset"]], *keys)


def _protocol(key: str) -> Param:
    return lambda cfg, names: getattr(cfg.protocol, key)


def _preprocessing(key: str) -> Param:
    return lambda cfg, names: _plain(cfg.preprocessing)[key]


def _experiment(key: str) -> Param:
    return lambda cfg, names: _plain(cfg.experiments[names["experiment"]])[key]


def _method(key: str) -> Param:
    return lambda cfg, names: getattr(cfg.methods[names["method"]], key)


def _quality_of(key: str) -> Param:
    """Options that the quality map of a method takes, as its loss or as its score."""
    return lambda cfg, names: cfg.quality_of(names["method"], _method(key)(cfg, names))


# --- what takes more


def strips_by_network(cfg: Config, dataset: str) -> bool:
    """Whether a network strips the skulls of a data set."""
    return cfg.backend_of(dataset).removeprefix("auto-") == "hdbet"


def predicts_in_batches(cfg: Config, dataset: str) -> bool:
    """Whether masks are predicted in batches: on a GPU, which should not wait for imports.

    Where the config says that there is none a scan is a job: a network takes minutes on a CPU, and
    more cores take more scans.
    """
    on_cpu = cfg.preprocessing.skullstrip.device == "cpu" or cfg.train.accelerator == "cpu"
    return strips_by_network(cfg, dataset) and not on_cpu


def _backend(cfg: Config, names: Names) -> str:
    return cfg.backend_of(names["dataset"])


def _backend_of_heads(cfg: Config, names: Names) -> str:
    return _backend(cfg, names).removeprefix("auto-")


def _network(cfg: Config, names: Names) -> dict[str, Any]:
    return _plain(cfg.preprocessing.skullstrip, "mode", "tta", "device")


def _skullstrip(cfg: Config, names: Names) -> dict[str, Any]:
    """Options of the network; none where no network runs in the job of a scan."""
    dataset = names["dataset"]
    alone = strips_by_network(cfg, dataset) and not predicts_in_batches(cfg, dataset)
    return _network(cfg, names) if alone else {}


def _packing(cfg: Config, names: Names) -> dict[str, Any]:
    packing = _plain(cfg.preprocessing, "spacing", "field_of_view", "shape", "percentiles")
    place = ("intra", names.get("dataset"), names.get("modality"))
    trained = {(e.setting, e.train, e.modality) for e in cfg.experiments.values()}
    if place in trained and cfg.protocol.intra_slices == "whole_brain_stack":
        packing["stack"] = cfg.protocol.intra_scaling
    return packing


def _split_experiment(cfg: Config, names: Names) -> dict[str, Any]:
    """What a split depends on of its experiment, and the layouts of its data sets."""
    experiment = cfg.experiments[names["experiment"]]
    sets = (experiment.train, *experiment.test)
    layouts = {name: layout_name(cfg.datasets[name].layout) for name in sets}
    kept = _plain(experiment, "setting", "modality", "train", "test", "folds")
    return {**kept, "layouts": layouts}


def _split_sizes(cfg: Config, names: Names) -> dict[str, Any]:
    """The sizes that an experiment's splits depend on."""
    experiment = cfg.experiments[names["experiment"]]
    if experiment.setting == "intra":
        return _plain(cfg.splits, "kind", "seed")
    if cfg.splits.kind == "reference":
        return _plain(cfg.splits, "kind", "reference")
    content = _plain(cfg.splits)
    del content["reference"]
    sizes = content["unhealthy_validation"]
    content["unhealthy_validation"] = {t: sizes[t] for t in experiment.test if t in sizes}
    return content


def _model(cfg: Config, names: Names) -> dict[str, Any]:
    return _plain(cfg.models[cfg.methods[names["method"]].model], "family", "options")


def _loop(cfg: Config, names: Names) -> dict[str, Any]:
    """Training parameters that define the result; how a training is run is left out."""
    loop = cfg.train_of(names["method"])
    return loop.model_dump(mode="json", exclude=set(loop.HOW))


def _of_training(key: str) -> Param:
    return lambda cfg, names: getattr(cfg.train_of(names["method"]), key)


def _training_data(cfg: Config, names: Names) -> dict[str, Any]:
    data = _plain(cfg.experiments[names["experiment"]], "setting", "train")
    if data["setting"] == "intra":
        data["intra_slices"] = cfg.protocol.intra_slices
        if cfg.protocol.intra_scaling == "stack":  # absent as in trees before there was a choice
            data["intra_scaling"] = "stack"
    return data


def _noise_field(cfg: Config, names: Names) -> str:
    """How noise is shared; for methods that draw none the value of those that share it."""
    return cfg.protocol.noise_field if cfg.family_of(names["method"]).noisy else "per_batch"


def _inference_batch(cfg: Config, names: Names) -> int | None:
    """Slices per pass, where the noise of a slice depends on its place in the pass."""
    one_field = _noise_field(cfg, names) == "per_batch"
    return None if one_field else cfg.train_of(names["method"]).inference_batch


def _postprocessing(cfg: Config, names: Names) -> dict[str, Any]:
    order = {"order": cfg.protocol.postprocessing_order}
    return _plain(cfg.protocol, "erosion", "median") | order


def _dssim(cfg: Config, names: Names) -> dict[str, Any] | None:
    """How the DSSIM of reconstructions is measured; None for methods that give a score instead."""
    method = names["method"]
    return None if cfg.methods[method].score == "direct" else cfg.quality_of(method, "ssim")


def _table(cfg: Config, names: Names) -> dict[str, Any]:
    return _plain(cfg.tables[names["table"]])


#: Rule -> its params -> how they follow from the config.
PARAMS: dict[str, dict[str, Param]] = {
    "make_phantom": {
        "dataset": _dataset("layout", "modalities", "phantom"),
        "seed": _of_config("seed"),
    },
    "prepare_atlas": {"spacing": _preprocessing("spacing"), "atlas": _preprocessing("atlas")},
    "predict_brain_masks": {"backend": _backend_of_heads, "network": _network},
    "skullstrip_scan": {"backend": _backend, "skullstrip": _skullstrip, "seed": _of_config("seed")},
    "register_scan": {
        "spacing": _preprocessing("spacing"),
        "n4": _preprocessing("n4"),
        "lesion_interpolation": _protocol("lesion_interpolation"),
        "lesion_labels": lambda cfg, n: layout_of(cfg.datasets[n["dataset"]].layout).lesion_labels,
        "seed": _of_config("seed"),
    },
    "pack_slices": {"preprocessing": _packing, "curvature_flow": _protocol("curvature_flow")},
    "make_splits": {"experiment": _split_experiment, "splits": _split_sizes},
    "compute_air": {
        "modality": _experiment("modality"),
        "tests": _experiment("test"),
        "reference": lambda cfg, names: cfg.air_reference_of(names["experiment"]),
        "rule": _protocol("air_rule"),
    },
    "train_model": {
        "model": _model,
        "loss": _method("loss"),
        "air": _method("air"),
        "loop": _loop,
        "data": _training_data,
        "quality": _quality_of("loss"),
        "seed_name": lambda cfg, names: cfg.seed_name_of(names["method"]),
        "noise_field": _noise_field,
        "keep": _protocol("checkpoint"),
        "draw": _protocol("validation_draw"),
        "seed": _of_config("seed"),
    },
    "reconstruct_volumes": {
        "model": _model,
        "air": _method("air"),
        "t_test": lambda cfg, n: cfg.protocol.t_test_of(n["experiment"], n["test"]),
        "noise_field": _noise_field,
        "batch": _inference_batch,
        "seed_name": lambda cfg, names: cfg.seed_name_of(names["method"]),
        "seed": _of_config("seed"),
    },
    "score_volumes": {
        "score": _method("score"),
        "air": _method("air"),
        "quality": _quality_of("score"),
        "postprocessing": _postprocessing,
        "dssim": _dssim,
    },
    "search_threshold": {"search": _protocol("threshold_search")},
    "evaluate_volumes": {
        "component_max_size": _protocol("component_max_size"),
        "voxel_mm": lambda cfg, names: cfg.preprocessing.voxel_mm,
    },
    "rescore_volumes": {
        "air": _method("air"),
        "variants": lambda cfg, names: cfg.variants_of(names["study"], names["method"]),
    },
    "measure_cost": {
        "model": _model,
        "loss": _method("loss"),
        "quality": _quality_of("loss"),
        "batch_size": _of_training("batch_size"),
        "inference_batch": _of_training("inference_batch"),
        "precision": _of_training("precision"),
        "accelerator": _of_training("accelerator"),
        "threads": lambda cfg, names: cfg.run.train_threads,
        "noise_field": _noise_field,
        "t_test": lambda cfg, names: cfg.protocol.t_test["default"],
        "shape": _preprocessing("shape"),
        "seed": _of_config("seed"),
    },
    "make_metrics_table": {
        "table": _table,
        "spacing": _preprocessing("spacing"),
        "seed": _of_config("seed"),
    },
    "make_ranks": {"table": _table},
    "make_table": {
        "table": _table,
        "protocol": _protocol("preset"),
        "phantom": _of_config("phantom"),
        "seed": _of_config("seed"),
    },
}

PARAMS["reconstruct_healthy"] = {
    **PARAMS["reconstruct_volumes"],
    "healthy": lambda cfg, names: cfg.experiments[names["experiment"]].train,
}
PARAMS["score_healthy"] = PARAMS["score_volumes"]
PARAMS["evaluate_healthy"] = PARAMS["evaluate_volumes"]
