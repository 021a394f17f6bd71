"""Programs over the graph of records (``uad.core.records``) of a finished run.

``verdict.audit``: is every file what its record says, and do they agree; ``trace.trace``: from a
cell of a table to the raw files; ``compare.compare_runs``: two runs, file by file; ``crate.pack``
and ``crate_verify.verify``: a run as one file for others.
"""
