"""Rule reconstruct_volumes: healthy-looking versions of validation and test volumes."""

import numpy as np
import torch

from uad import config as uad_config
from uad.air import invert_foreground, stored_decision
from uad.core.files import read_tsv
from uad.core.provenance import job
from uad.core.seeds import derive_seed
from uad.evaluate.reconstruct import Reconstructor, load_network
from uad.methods import load
from uad.methods.base import Setup
from uad.networks.execution import device_of, reuse_freed_memory
from uad.preprocess.slices import read_shape, read_store, volume_writer
from uad.run.devices import claim
from uad.splits import subjects_of

HOW = ("accelerator", "precision", "inference_batch", "compile")

with job(snakemake) as context:
    files, params, names = snakemake.input, snakemake.params, snakemake.wildcards
    cfg = uad_config.load(snakemake.config)
    sharing = cfg.jobs_per_gpu_of(names.method)
    loop = cfg.train_of(names.method)
    context.config["train"] = {name: getattr(loop, name) for name in HOW}
    context.facts["gpu"] = claim(snakemake.resources.get("gpu", 0), sharing=sharing)
    torch.set_num_threads(snakemake.threads)
    split = read_tsv(files.split)
    invert = stored_decision(files.air, params.air)
    shape = read_shape(files.store)
    width, height, depth = shape
    setup = Setup(noise_field=params.noise_field, image_size=(height, width))
    method = load(params.model["family"])(params.model["options"], setup)
    device = device_of(loop.accelerator)
    reuse_freed_memory()
    reconstructor = Reconstructor(
        method,
        load_network(method, files.weights, device) if method.trained else None,
        t_test=params.t_test,
        batch=loop.inference_batch,
        device=device,
        precision=loop.precision,
        compile=loop.compile,
    )
    place = names.experiment, params.seed_name, names.fold, names.test
    healthy = params.get("healthy")  # the data set whose healthy test subjects are restored
    roles = ("test_healthy",) if healthy else ("val_unhealthy", "test")
    stored = [
        f"{role}/{subject}"
        for role in roles
        for subject in subjects_of(split, healthy or names.test, role)
    ]

    def read(name):
        """A volume as the method shall see it, its mask and its seed."""
        subject = name.split("/")[1]
        part = read_store(files.store, [subject])
        volume, mask = part.volumes[0], part.masks[0]
        if method.sees_lesions:
            volume = part.lesions[0].astype(volume.dtype)
        seed = derive_seed(params.seed, *place, subject)
        return invert_foreground(volume, mask) if invert else volume, mask, seed

    with volume_writer(snakemake.output[0], stored, shape, np.float16) as write:
        reconstructor.run(stored, depth, read, write)
    context.facts |= {"volumes": len(stored), "device": device, "t_test": params.t_test}
