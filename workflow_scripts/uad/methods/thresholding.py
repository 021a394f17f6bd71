"""Thresh: the equalised intensity of a voxel is its anomaly score; nothing is learnt.

Source: FeliMe/brain_sas_baseline@1d32347 (``utils/utils.py``: histogram equalisation within
the brain, 256 bins, background 0), there for FLAIR and with ``skimage.exposure.equalize_hist``
on images cast to integers, each integer a bin of its own. Intensities here are in [0, 1], so
the bins are real; the few lines of NumPy below give what scikit-image gives, which the
environment of this stage does not hold.
"""

from __future__ import annotations

from pydantic import Field

from uad.methods.base import MethodOptions, Untrained


class ThresholdingOptions(MethodOptions):
    """Options of the family ``thresholding``."""

    bins: int = Field(256, ge=2)


class Thresholding(Untrained):
    """Bright is abnormal, relative to the histogram of the whole brain."""

    Options = ThresholdingOptions
    options: ThresholdingOptions

    def reconstruct(self, network, images, masks, t_test, generator):
        """Share of the brain's voxels that are darker: 0 to 1, and 0 in the background."""
        import numpy as np
        import torch

        brain = masks > 0
        values = images[brain].double().cpu().numpy()
        scores = torch.zeros_like(images)
        if values.size == 0:
            return scores
        counts, edges = np.histogram(values, self.options.bins)
        ranks = np.interp(values, (edges[:-1] + edges[1:]) / 2, counts.cumsum() / values.size)
        scores[brain] = torch.from_numpy(ranks).to(scores)
        return scores


METHOD = Thresholding
