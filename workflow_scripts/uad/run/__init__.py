"""Planning, starting and sharing out of runs.

- plan: Snakemake's own jobs (a dry run in a folder of links, with stand-ins for data that are not
  there) times seconds: the mean of finished jobs of the same results, else of ``snakemake cost``,
  else of ``resources/unit_costs.yaml``, which says what was measured and what derived.
- launch: a run on a cluster, from a copy of the code. devices: one GPU for a job. room: disk.
"""
