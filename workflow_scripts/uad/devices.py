"""One GPU for one job: the scheduler's, or one that no other job on this machine holds.

Snakemake counts GPUs, it does not say which (snakemake/snakemake#281). Devices are looked up in
the driver's management library (NVML), so that CUDA stays untouched until one is chosen.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uad.errors import UadError

log = logging.getLogger(__name__)

#: What CUDA reads: numbers or UUIDs; only these devices exist for a process.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Where the lock files lie. Not TMPDIR, which may be another for each job.
LOCKS = Path(f"/tmp/uad-gpus-{os.getuid()}")
#: Seconds between two looks for a free device.
PAUSE = 1.0

#: Descriptors that hold locks and what was claimed with them, until this process ends.
_held: list[int] = []
_claimed: dict[str, Any] = {}


class DeviceError(UadError):
    """No GPU can be claimed."""


@dataclass(frozen=True)
class Device:
    """A GPU that this process may use.

    Attributes:
        name: how ``CUDA_VISIBLE_DEVICES`` calls it.
        index: its number on the machine (PCI order); None for a MIG instance.
        uuid: its UUID, for example ``GPU-8a7c...``.
    """

    name: str
    index: int | None
    uuid: str


def installed() -> list[str]:
    """UUIDs of the machine's NVIDIA GPUs in PCI order, "" for one that does not answer.

    Asks NVML; without the driver the list is empty. In a SLURM job with confined devices it has
    only those of the job.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count, found = ctypes.c_uint(0), []
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    for number in range(count.value):
        handle, text = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        silent = nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle))
        silent = silent or nvml.nvmlDeviceGetUUID(handle, text, len(text))
        found.append("" if silent else text.value.decode("ascii"))
    return found


def visible(listed: str | None, uuids: Sequence[str]) -> list[Device]:
    """The devices that CUDA would show to this process.

    Args:
        listed: ``CUDA_VISIBLE_DEVICES``, or None where it is not set.
        uuids: what :func:`installed` gives. Numbers are taken to be in that order, which is
            CUDA's own where all GPUs are of one kind or ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.

    Returns:
        In the order of the list. As in CUDA a name of no device ends the list, and one that
        comes twice makes it empty (CUDA C++ Programming Guide, environment variables).
    """
    if listed is None:
        return [Device(uuid, number, uuid) for number, uuid in enumerate(uuids) if uuid]
    found: list[Device] = []
    for name in listed.split(","):
        device = _device(name.strip(), uuids)
        if device is None:
            break
        if device.uuid in [other.uuid for other in found]:
            return []
        found.append(device)
    return found


def _device(name: str, uuids: Sequence[str]) -> Device | None:
    if name.startswith("MIG-") and uuids:
        return Device(name, None, name)
    if name.isdecimal():
        matches = [int(name)] if int(name) < len(uuids) else []
    else:  # a UUID may be shortened as long as it is unique
        named = name.startswith("GPU-")
        matches = [n for n, uuid in enumerate(uuids) if named and uuid.startswith(name)]
    if len(matches) != 1 or not uuids[matches[0]]:
        return None
    return Device(name, matches[0], uuids[matches[0]])


def claim(wanted: int, device: str = "auto", locks: Path | None = None) -> dict[str, Any]:
    """Take one GPU for this process, before CUDA is initialised, and keep it until it ends.

    A GPU that SLURM has assigned is used as it is. Otherwise a free device is locked (a kernel
    lock, so that ``kill -9`` frees it) and ``CUDA_VISIBLE_DEVICES`` set to it; while all of them
    are taken by other jobs of this user, the call waits. Where no GPU is visible nothing happens.

    Args:
        wanted: GPUs that the job asks for (``snakemake.resources.gpu``): none or one.
        device: ``cuda:<n>`` takes this one of the visible devices and leaves
            ``CUDA_VISIBLE_DEVICES`` alone, so that the number stays right; else any will do.
        locks: folder of the lock files, private to the user; default :data:`LOCKS`.

    Returns:
        Facts for the provenance record: ``assigned_by`` (``slurm``, ``lock`` or ``none``),
        ``index`` and ``uuid`` (None where unknown), ``cuda_visible_devices`` as it is now, and
        ``waited_s``, seconds. A second call returns the facts of the first.

    Raises:
        DeviceError: the folder of the lock files is not private, or ``cuda:<n>`` is not visible.
    """
    if _claimed:
        return dict(_claimed)
    if wanted < 1:
        return _facts("none", None)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("a device must be claimed before CUDA is initialised")
    listed, uuids = os.environ.get(VISIBLE), installed()
    devices = visible(listed, uuids)
    if "SLURM_JOB_ID" in os.environ and listed:
        names = [name.strip() for name in listed.split(",")]
        if len(names) == 1:
            _claimed.update(_facts("slurm", devices[0] if devices else None))
            return dict(_claimed)
        log.warning("SLURM gave this job %d GPUs (%s); it uses one", len(names), listed)
        if not devices:  # their driver does not answer: nothing to tell them apart by
            os.environ[VISIBLE] = names[0]
            _claimed.update(_facts("slurm", None))
            return dict(_claimed)
    if not devices:
        return _facts("none", None)
    pinned = device.partition(":")[2]
    if pinned.isdecimal():
        if int(pinned) >= len(devices):
            raise DeviceError(f"{device}: only {len(devices)} GPU(s) are visible to this job.")
        devices = [devices[int(pinned)]]
    started = time.monotonic()
    chosen = _lock_one(devices, _private(locks or LOCKS))
    if not pinned.isdecimal():
        os.environ[VISIBLE] = chosen.name
    _claimed.update(_facts("lock", chosen, time.monotonic() - started))
    return dict(_claimed)


def _facts(by: str, device: Device | None, waited: float = 0.0) -> dict[str, Any]:
    return {
        "assigned_by": by,
        "index": device.index if device else None,
        "uuid": device.uuid if device else None,
        "cuda_visible_devices": os.environ.get(VISIBLE),
        "waited_s": round(waited, 1),
    }


def _private(folder: Path) -> Path:
    """The folder of the lock files, made if it is not there; only this user may write to it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise DeviceError(f"{folder}: not a folder for lock files ({error}).") from error
    _held.append(directory)
    found = os.fstat(directory)
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise DeviceError(
            f"{folder}: must belong to you alone (mode 700), because it says which GPU is taken. "
            "Remove it, or ask its owner to."
        )
    fcntl.flock(directory, fcntl.LOCK_SH)  # systemd-tmpfiles passes over folders in use
    return folder


def _lock_one(devices: Sequence[Device], folder: Path) -> Device:
    """The first device that can be locked; waits for one."""
    told = False
    while True:
        for device in devices:
            if _lock(folder / f"{device.uuid.replace('/', '_')}.lock"):
                return device
        if not told:
            names = ", ".join(device.name for device in devices)
            log.warning("waiting for a GPU: other jobs hold all that may be used (%s)", names)
            told = True
        time.sleep(PAUSE)


def _lock(path: Path) -> bool:
    """Whether the file could be locked; the lock stays until this process ends."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DeviceError(f"{path}: cannot be opened ({error}); remove it.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # someone may have removed the file in between: a lock on it would bind no one else
        same = os.path.samestat(path.lstat(), os.fstat(descriptor))
    except (BlockingIOError, FileNotFoundError):
        same = False
    if same:
        _held.append(descriptor)
    else:
        os.close(descriptor)
    return same
