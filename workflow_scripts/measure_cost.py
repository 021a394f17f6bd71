"""Rule measure_cost: parameters, operations, times and memory of one method."""

import torch

from uad.core.files import write_json
from uad.core.provenance import job
from uad.cost import measure
from uad.methods import load
from uad.methods.base import Setup
from uad.networks.execution import device_of
from uad.run.devices import claim

with job(snakemake) as context:
    context.facts["gpu"] = claim(snakemake.resources.get("gpu", 0))
    torch.set_num_threads(snakemake.threads)
    params, name = snakemake.params, snakemake.wildcards.method
    width, height, _ = params.shape
    setup = Setup(params.loss, params.quality, params.noise_field, (height, width))
    method = load(params.model["family"])(params.model["options"], setup)
    record = measure(
        method,
        tuple(params.shape),
        batch_size=params.batch_size,
        inference_batch=params.inference_batch,
        t_test=params.t_test,
        precision=params.precision,
        device=device_of(params.accelerator),
        seed=params.seed,
    )
    write_json(snakemake.output[0], {"method": name, "loss": params.loss, **record})
    context.facts |= record
