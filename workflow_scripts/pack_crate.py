"""Rule pack_crate: results, records, config, environment and code as one file for others."""

import os
from collections import Counter
from pathlib import Path

from uad.audit.crate import pack, sources_of
from uad.audit.crate_contents import Choice
from uad.audit.crate_verify import verify
from uad.core.errors import DataError
from uad.core.provenance import SCRIPTS, job

with job(snakemake) as context:
    params = snakemake.params
    choice = Choice(params.phantom, images=params.images, models=params.models)
    sources = sources_of(params.datasets, choice)
    if sources and (choice.images or choice.models):
        lines = [f"  {name}: {source.licence}" for name, source in sources.items()]
        said = "images" if choice.images else "weights"
        print(f"This crate holds {said}. Before you pass it on, mind the terms of the data:")
        print("\n".join(lines))
    files = pack(
        Path(snakemake.input.config).parent,
        snakemake.output[0],
        choice,
        os.environ.get("UAD_REPOSITORY") or SCRIPTS.parent,
        params.datasets,
        params.agent,
    )
    left_out = Counter(file.left_out for file in files if file.left_out)
    context.facts = {"files": len(files) - left_out.total(), "left_out": dict(left_out)}
    for why, count in sorted(left_out.items()):
        print(f"not included: {count} files: {why}")
    # as the reader of the crate will, who has nothing else
    verified = verify(snakemake.output[0])
    context.facts["verified"] = not verified.failures
    if verified.failures:
        named = [f"{place} {'; '.join(why)}" for place, why in sorted(verified.failures.items())]
        print("\n".join(f"FAIL {text}" for text in named))
        reasons = "; ".join(named[:5]).rstrip(".")
        raise DataError(
            f"{snakemake.output[0]}: does not pass its own verification: {reasons}. "
            "'make audit' tells what is wrong with the results; the crate is not kept."
        )
    print(f"{snakemake.output[0]}: packed and verified")
