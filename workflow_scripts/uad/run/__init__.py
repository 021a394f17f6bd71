"""What a target costs before it is run: jobs, hours, disk, and what is already done.

The jobs are Snakemake's own: dry runs, read as text. They look at a folder of links into the
user's working directory, so that nothing there is locked or written; where raw data are not there
yet, that folder has empty files in the data sets' own layouts, as many as the config expects.
Seconds come from finished jobs of the same results, else from a measurement of the method
(``results/cost``), else from ``resources/unit_costs.yaml``, which says for each number whether it
was measured or derived.
"""
