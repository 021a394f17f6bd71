"""Rule train_model: train one method on one fold, or go on where a killed job stopped."""

from pathlib import Path

import pandas as pd
import torch

from uad import config as uad_config
from uad.air import invert_foreground, stored_decision
from uad.core.files import read_tsv, sha256
from uad.core.provenance import job
from uad.core.seeds import derive_seed
from uad.methods import load
from uad.methods.base import Setup
from uad.preprocess.slices import read_shape, training_slices
from uad.report.figures import figure_loss
from uad.run.devices import claim
from uad.splits import subjects_of
from uad.train.batches import TrainingSet
from uad.train.loop import train

#: What defines a training; how it is run (accelerator, checkpoints) may change on the way.
TRAINED_WITH = ("model", "loss", "quality", "noise_field", "loop", "keep", "draw", "data")

with job(snakemake) as context:
    cfg = uad_config.load(snakemake.config)
    sharing = cfg.jobs_per_gpu_of(snakemake.wildcards.method)
    loop = cfg.train_of(snakemake.wildcards.method)
    context.config["train"] = loop.model_dump(mode="json", include=set(loop.HOW))
    context.facts["gpu"] = claim(snakemake.resources.get("gpu", 0), sharing=sharing)
    torch.set_num_threads(snakemake.threads)
    files, params = snakemake.input, snakemake.params
    split = read_tsv(files.split)
    invert = stored_decision(files.air, params.air)

    def data(role):
        """Slices of one healthy role, inverted if the method's AIR decision says so."""
        subjects = subjects_of(split, params.data["train"], role)
        volumes, masks, slices = training_slices(files.store, subjects, params.data)
        images = invert_foreground(volumes, masks) if invert else volumes
        return TrainingSet.from_volumes(images, masks, slices)

    seed = derive_seed(
        params.seed,
        snakemake.wildcards.experiment,
        params.seed_name,
        snakemake.wildcards.fold,
    )
    width, height, _ = read_shape(files.store)
    setup = Setup(params.loss, params.quality, params.noise_field, (height, width))
    method = load(params.model["family"])(params.model["options"], setup)
    identity = {
        **{name: params[name] for name in TRAINED_WITH},
        "seed": seed,
        "invert": invert,
        "store": sha256(files.store),
        "split": sha256(files.split),
    }
    context.facts |= train(
        method,
        (data("train"), data("val_healthy")),
        Path(snakemake.output.weights).parent,
        loop,
        keep=params.keep,
        fixed_validation=params.draw == "fixed",
        seed=seed,
        identity=identity,
    )
    title = " ".join(snakemake.wildcards)
    figure_loss(snakemake.output.picture, pd.read_csv(snakemake.output.history), title)
