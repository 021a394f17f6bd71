"""Rule compare_methods: the claims of a table, tested on its per-volume metrics."""

from uad.core.files import write_tsv
from uad.core.provenance import job
from uad.evaluate import test_claims
from uad.report.metric_files import collect_metrics

with job(snakemake):
    params = snakemake.params
    metrics = collect_metrics(snakemake.input.metrics)
    write_tsv(snakemake.output[0], test_claims(metrics, params.claims, seed=params.seed))
