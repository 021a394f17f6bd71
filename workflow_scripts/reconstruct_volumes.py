"""Rule reconstruct_volumes: healthy-looking versions of validation and test volumes."""

import numpy as np
import torch

from uad import config as uad_config
from uad.air import invert_foreground, stored_decision
from uad.datasets.slices import read_shape, read_store, write_volumes
from uad.datasets.splits import subjects_of
from uad.devices import claim
from uad.files import read_tsv
from uad.inference import device_of, load_network, reconstruct_volume
from uad.methods import load
from uad.methods.base import Setup
from uad.provenance import job
from uad.seeds import derive_seed

with job(snakemake) as context:
    context.facts["gpu"] = claim(snakemake.resources.get("gpu", 0))
    torch.set_num_threads(snakemake.threads)
    files, params, names = snakemake.input, snakemake.params, snakemake.wildcards
    loop = uad_config.load(snakemake.config).train_of(names.method)
    split = read_tsv(files.split)
    invert = stored_decision(files.air, params.air)
    width, height, _ = read_shape(files.store)
    setup = Setup(noise_field=params.noise_field, image_size=(height, width))
    method = load(params.model["family"])(params.model["options"], setup)
    device = device_of(loop.accelerator)
    network = load_network(method, files.weights).to(device) if method.trained else None
    place = names.experiment, params.seed_name, names.fold, names.test
    results = {}
    for role in ("val_unhealthy", "test"):
        part = read_store(files.store, subjects_of(split, names.test, role))
        images = invert_foreground(part.volumes, part.masks) if invert else part.volumes
        for subject, volume, mask in zip(part.subjects, images, part.masks, strict=True):
            restored = reconstruct_volume(
                method,
                network,
                volume,
                mask,
                t_test=params.t_test,
                batch=loop.inference_batch,
                seed=derive_seed(params.seed, *place, subject),
                device=device,
            )
            results[f"{role}/{subject}"] = restored.astype(np.float16)
    context.facts |= {"volumes": len(results), "device": device, "t_test": params.t_test}
    write_volumes(snakemake.output[0], results)
