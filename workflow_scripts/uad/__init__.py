"""uad: unsupervised anomaly detection in brain MRI, from an image quality assessment perspective.

The library behind the workflow. It never imports Snakemake: every script of
``workflow_scripts/`` is a thin caller, and everything here can be used alone.
"""

__version__ = "0.2.0"
