"""One GPU for a job: the scheduler's, or one of this machine that has room for it.

Snakemake counts GPUs, it does not say which (snakemake/snakemake#281). So a job holds a kernel lock
on its part of a device as long as it lives. The driver's library (NVML) is asked for devices: it
leaves CUDA untouched.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uad.core.errors import UadError

log = logging.getLogger(__name__)

#: What CUDA reads: numbers or UUIDs; only these devices exist for a process.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Where the lock files lie. Not TMPDIR, which may be another for each job.
LOCKS = Path(f"/tmp/uad-gpus-{os.getuid()}")
#: Seconds between two tries.
PAUSE = 1.0
#: Bytes of a device's lock file, which stand for the whole device; jobs lock parts of it.
WHOLE = 2520  # any number of jobs up to ten divides it

#: Descriptors that hold locks and what was claimed with them, until this process ends.
_held: list[int] = []
_claimed: dict[str, Any] = {}


class DeviceError(UadError):
    """No GPU can be claimed."""


class Device(NamedTuple):
    """A GPU that this process may use."""

    #: how ``CUDA_VISIBLE_DEVICES`` calls it
    name: str
    #: its number on the machine (PCI order); None for a MIG instance
    index: int | None
    uuid: str


def installed() -> list[str]:
    """UUIDs of the machine's NVIDIA GPUs in PCI order, "" for one that does not answer.

    Empty without a driver; of a SLURM job with confined devices only those of the job.
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
    """The devices that CUDA would show to this process, in the order of the list.

    As in CUDA a name of no device ends the list (``CUDA_VISIBLE_DEVICES``; None: not set), and one
    that comes twice makes it empty (CUDA C++ Programming Guide, environment variables). Numbers
    are in the order of the UUIDs, which is CUDA's own where all GPUs are of one kind or
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """
    if listed is None:
        return [Device(uuid, number, uuid) for number, uuid in enumerate(uuids) if uuid]
    found: dict[str, Device] = {}
    for name in listed.split(","):
        device = _device(name.strip(), uuids)
        if device is None:
            break
        if device.uuid in found:
            return []
        found[device.uuid] = device
    return list(found.values())


def _device(name: str, uuids: Sequence[str]) -> Device | None:
    if name.startswith("MIG-") and uuids:
        return Device(name, None, name)
    # a UUID may be shortened as long as it is unique
    shortened = name.startswith("GPU-")
    matches = [
        Device(name, number, uuid)
        for number, uuid in enumerate(uuids)
        if uuid and (name == str(number) or (shortened and uuid.startswith(name)))
    ]
    return matches[0] if len(matches) == 1 else None


def claim(
    wanted: int, device: str = "auto", sharing: int = 1, locks: Path | None = None
) -> dict[str, Any]:
    """Take a GPU for this process, before CUDA is initialised, and keep it until it ends.

    A GPU that SLURM has assigned is used as it is. Otherwise the job waits for a device with
    room for it, and ``CUDA_VISIBLE_DEVICES`` is set to it. Where no GPU is visible or ``wanted``
    (0 or 1) nothing happens. ``device`` ``cuda:<n>`` takes this one of the visible devices and
    leaves ``CUDA_VISIBLE_DEVICES`` alone, so that the number stays right. As many jobs as
    ``sharing`` says may be on a device. ``locks`` (:data:`LOCKS`) is private to the user.

    Returns:
        Facts for the provenance record: ``assigned_by`` (``slurm``, ``lock`` or ``none``),
        ``index`` and ``uuid`` (None where unknown), ``cuda_visible_devices`` as it is now,
        ``waited_s``, seconds, and ``sharing``. A second call returns the facts of the first.

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
    listed = os.environ.get(VISIBLE)
    devices = visible(listed, installed())
    if "SLURM_JOB_ID" in os.environ and listed:
        names = [name.strip() for name in listed.split(",")]
        if len(names) > 1:
            log.warning("SLURM gave this job %d GPUs (%s); it uses one", len(names), listed)
        if len(names) == 1 or not devices:  # without a driver nothing tells them apart
            os.environ[VISIBLE] = names[0]
            return _facts("slurm", devices[0] if devices else None, sharing)
    if not devices:
        return _facts("none", None)
    pinned = device.partition(":")[2]
    if pinned.isdecimal():
        if int(pinned) >= len(devices):
            raise DeviceError(f"{device}: only {len(devices)} GPU(s) are visible to this job.")
        devices = [devices[int(pinned)]]
    started = time.monotonic()
    chosen = _wait_for_one(devices, sharing, _private(locks or LOCKS))
    if not pinned.isdecimal():
        os.environ[VISIBLE] = chosen.name
    return _facts("lock", chosen, sharing, time.monotonic() - started)


def _facts(by: str, device: Device | None, sharing: int = 1, waited: float = 0.0) -> dict[str, Any]:
    facts = {
        "assigned_by": by,
        "index": device.index if device else None,
        "uuid": device.uuid if device else None,
        "cuda_visible_devices": os.environ.get(VISIBLE),
        "waited_s": round(waited, 1),
        "sharing": sharing,
    }
    if by != "none":
        _claimed.update(facts)
    return facts


def _private(folder: Path) -> Path:
    """The folder, made if it is not there; only this user may write to it."""
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


def _wait_for_one(devices: Sequence[Device], sharing: int, folder: Path) -> Device:
    """Wait for a device with room for this job.

    First come, first served: else small jobs that come and go would keep one that fills a device
    waiting for ever. Parts are taken on all devices before one has two jobs.
    """
    parts = [(device, part) for part in range(sharing) for device in devices]
    names = ", ".join(device.name for device in devices)
    told = False

    def tell() -> None:
        nonlocal told
        if not told:
            log.warning("waiting for a GPU: other jobs hold all that may be used (%s)", names)
        told = True

    turn = _open(folder / "turn.lock")
    try:
        if not _lock(turn, fcntl.flock):
            tell()
            fcntl.flock(turn, fcntl.LOCK_EX)
        while True:
            for device, part in parts:
                if _take(folder / f"{device.uuid.replace('/', '_')}.lock", part, sharing):
                    return device
            tell()
            time.sleep(PAUSE)
    finally:
        os.close(turn)


def _take(path: Path, part: int, sharing: int) -> bool:
    """Lock a part of a device until this process ends, if it is free.

    The lock is lost when the process closes any descriptor of the file: it has one only.
    """
    descriptor, size = _open(path), WHOLE // sharing
    if _lock(descriptor, fcntl.lockf, size, part * size):
        _held.append(descriptor)
        return True
    os.close(descriptor)
    return False


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DeviceError(f"{path}: cannot be opened ({error}); remove it.") from error


def _lock(descriptor: int, lock: Callable[..., None], *place: int) -> bool:
    """Whether the file, or this place in it, could be locked."""
    try:
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, *place)
    except (BlockingIOError, PermissionError):
        return False
    return True
