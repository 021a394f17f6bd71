"""Which scans of a data set a network predicts in one job.

A subject's batch follows from its label and from the size that the config expects of its data
set, so that more subjects leave the batches of the others as they are.
"""

from __future__ import annotations

import math

from uad.core.seeds import derive_seed

#: Scans of a batch: between this divided and multiplied by the square root of 2 on average.
SCANS_PER_BATCH = 9


def count_for(scans: int) -> int:
    """How many batches so many scans of one modality make: a power of two, so that few other sizes
    mean others.
    """
    return 2 ** max(0, round(math.log2(max(scans, 1) / SCANS_PER_BATCH)))


def number_of(subject: str, count: int) -> int:
    """The batch of a subject, from 0; of ``count``, each with about as many subjects."""
    return derive_seed("batch", subject) % count
