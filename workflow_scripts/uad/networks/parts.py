"""The parts of MONAI that the networks here are made of."""

from __future__ import annotations

from uad.core.imports import import_lightly

#: What MONAI imports where it is installed: for transforms, readers, plots and reports.
OPTIONAL = (
    "IPython PIL ignite matplotlib mlflow nibabel pandas requests scipy skimage sklearn "
    "torchvision tqdm"
).split()

_unet = import_lightly("monai.networks.nets.diffusion_model_unet", absent=OPTIONAL)
_blocks = import_lightly("monai.networks.blocks", absent=OPTIONAL)

Convolution = _blocks.Convolution
DiffusionModelUNet = _unet.DiffusionModelUNet
DiffusionUNetResnetBlock = _unet.DiffusionUNetResnetBlock
