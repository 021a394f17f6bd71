"""Rule train_model: train one method on one fold, or go on where a killed job stopped."""

from pathlib import Path

import pandas as pd
import torch

from uad.air import invert_foreground
from uad.config import Train
from uad.datasets.slices import eligible_slices, read_store
from uad.datasets.splits import subjects_of
from uad.files import read_json, read_tsv, sha256
from uad.methods import load
from uad.methods.base import Setup
from uad.provenance import job
from uad.reporting.figures import figure_loss
from uad.seeds import derive_seed
from uad.training import TrainingSet, train

with job(snakemake) as context:
    torch.set_num_threads(snakemake.threads)
    files, params = snakemake.input, snakemake.params
    spec = params.spec
    experiment, protocol = params.experiment, params.protocol
    split, invert = read_tsv(files.split), bool(files.air) and read_json(files.air)["invert"]
    intra = experiment["setting"] == "intra"

    def data(role):
        """Slices of one healthy role, inverted if the method's AIR decision says so."""
        part = read_store(files.store, subjects_of(split, experiment["train"], role))
        images = invert_foreground(part.volumes, part.masks) if invert else part.volumes
        central = intra and protocol["intra_slices"] == "central_stack"
        slices = eligible_slices(part.lesions, tumour_free=intra, central=central)
        return TrainingSet.from_volumes(images, part.masks, slices)

    seed = derive_seed(
        params.seed,
        snakemake.wildcards.experiment,
        snakemake.wildcards.method,
        snakemake.wildcards.fold,
    )
    quality = {
        "alpha": protocol["alpha"],
        "window": protocol["ssim_window"],
        "clamp": protocol["ssim_clamp"],
    }
    setup = Setup(
        image_size=(params.shape[1], params.shape[0]),
        loss=spec["method"]["loss"],
        quality=quality,
        noise_field=protocol["noise_field"],
    )
    method = load(spec["model"]["family"])(spec["model"]["options"], setup)
    identity = {
        "spec": spec,
        "protocol": protocol,
        "seed": seed,
        "invert": invert,
        "store": sha256(files.store),
        "split": sha256(files.split),
    }
    context.facts |= train(
        method,
        data("train"),
        data("val_healthy"),
        Path(snakemake.output.weights).parent,
        Train.model_validate(spec["train"]),
        keep=protocol["checkpoint"],
        fixed_validation=protocol["validation_draw"] == "fixed",
        seed=seed,
        identity=identity,
    )
    title = " ".join(snakemake.wildcards)
    figure_loss(snakemake.output.picture, pd.read_csv(snakemake.output.history), title)
