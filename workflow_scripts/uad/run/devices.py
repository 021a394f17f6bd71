"""One GPU for a job: the scheduler's, or one of this machine that has room for it.

Snakemake counts GPUs, it does not say which (snakemake/snakemake#281). So the jobs of a user queue
up for them: each has a file that says what it wants or has, and holds a kernel lock on it as long
as it lives. Devices are looked up in the driver's management library (NVML), so that CUDA stays
untouched until one is chosen.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import stat
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from uad.core.errors import UadError

log = logging.getLogger(__name__)

#: What CUDA reads: numbers or UUIDs; only these devices exist for a process.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Where the files of the queue lie. Not TMPDIR, which may be another for each job.
LOCKS = Path(f"/tmp/uad-gpus-{os.getuid()}")
#: Seconds between two looks at the queue.
PAUSE = 1.0

#: Descriptors that hold locks and what was claimed with them, until this process ends.
_held: list[int] = []
_claimed: dict[str, Any] = {}


class DeviceError(UadError):
    """No GPU can be claimed."""


@dataclass(frozen=True)
class Device:
    """A GPU that this process may use."""

    #: how ``CUDA_VISIBLE_DEVICES`` calls it
    name: str
    #: its number on the machine (PCI order); None for a MIG instance
    index: int | None
    uuid: str


@dataclass(frozen=True)
class Place:
    """A job's place in the queue for devices."""

    #: UUIDs of those that it may use; once it is served, of the one that it has
    devices: tuple[str, ...]
    #: how many jobs like it a device has room for; 1: it fills the device
    sharing: int = 1
    served: bool = False


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


def assign(queue: Sequence[Place]) -> list[str | None]:
    """Which device each job has or may take now, by UUID; None: it has to wait.

    First come, first served, each where least is in use: jobs spread over the devices before they
    double up. Where a job does not fit yet, its room is kept: else small jobs that come and go
    would keep one that fills a device waiting for ever.

    The queue has all jobs, in the order in which they came.
    """
    used: dict[str, Fraction] = defaultdict(Fraction)
    for job in queue:
        if job.served:
            used[job.devices[0]] += Fraction(1, job.sharing)
    found: list[str | None] = []
    for job in queue:
        device = min(job.devices, key=used.__getitem__)  # the first of equals
        if not job.served:
            used[device] += Fraction(1, job.sharing)
        found.append(device if job.served or used[device] <= 1 else None)
    return found


def claim(
    wanted: int, device: str = "auto", sharing: int = 1, locks: Path | None = None
) -> dict[str, Any]:
    """Take a GPU for this process, before CUDA is initialised, and keep it until it ends.

    A GPU that SLURM has assigned is used as it is. Otherwise the job queues up for a device with
    room for it (held by a kernel lock, so that ``kill -9`` frees it), ``CUDA_VISIBLE_DEVICES`` is
    set to it, and while jobs of this user fill all of them, the call waits. Where no GPU is
    visible nothing happens.

    Args:
        wanted: GPUs that the job asks for (``snakemake.resources.gpu``): none or one.
        device: ``cuda:<n>`` takes this one of the visible devices and leaves
            ``CUDA_VISIBLE_DEVICES`` alone, so that the number stays right; else any will do.
        sharing: how many jobs like this one may be on a device; 1: none beside it.
        locks: folder of the queue, private to the user; default :data:`LOCKS`.

    Returns:
        Facts for the provenance record: ``assigned_by`` (``slurm``, ``lock`` or ``none``),
        ``index`` and ``uuid`` (None where unknown), ``cuda_visible_devices`` as it is now,
        ``waited_s``, seconds, and ``sharing``. A second call returns the facts of the first.

    Raises:
        DeviceError: the folder of the queue is not private, or ``cuda:<n>`` is not visible.
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
            _claimed.update(_facts("slurm", devices[0] if devices else None, sharing))
            return dict(_claimed)
        log.warning("SLURM gave this job %d GPUs (%s); it uses one", len(names), listed)
        if not devices:  # their driver does not answer: nothing to tell them apart by
            os.environ[VISIBLE] = names[0]
            _claimed.update(_facts("slurm", None, sharing))
            return dict(_claimed)
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
    _claimed.update(_facts("lock", chosen, sharing, time.monotonic() - started))
    return dict(_claimed)


def _facts(by: str, device: Device | None, sharing: int = 1, waited: float = 0.0) -> dict[str, Any]:
    return {
        "assigned_by": by,
        "index": device.index if device else None,
        "uuid": device.uuid if device else None,
        "cuda_visible_devices": os.environ.get(VISIBLE),
        "waited_s": round(waited, 1),
        "sharing": sharing,
    }


def _private(folder: Path) -> Path:
    """The folder of the queue, made if it is not there; only this user may write to it."""
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
    """Queue up, and wait for a device with room for this job."""
    wish = Place(tuple(device.uuid for device in devices), sharing)
    number, told = 0, False
    while True:
        with _alone(folder):
            queue = _living(folder)
            if number not in queue:  # this job is new, or someone has removed its file
                number = max([time.time_ns(), *(other + 1 for other in queue)])
                own = _enter(folder / f"{number}.job")
                queue[number] = wish
                _write(own, wish)
            found = assign(list(queue.values()))[list(queue).index(number)]
            if found is not None:
                _write(own, Place((found,), sharing, served=True))
                return next(device for device in devices if device.uuid == found)
        if not told:
            names = ", ".join(device.name for device in devices)
            log.warning("waiting for a GPU: other jobs hold all that may be used (%s)", names)
            told = True
        time.sleep(PAUSE)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one job at a time looks at the queue."""
    path, same = folder / "queue.lock", False
    while not same:
        descriptor = _open(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # someone may have removed the file in between: a lock on it would bind no one else
        with contextlib.suppress(FileNotFoundError):
            same = os.path.samestat(path.lstat(), os.fstat(descriptor))
        if not same:
            os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def _living(folder: Path) -> dict[int, Place]:
    """Jobs by number, in the order in which they came; files of those that ended are removed."""
    found = {}
    for path in folder.glob("*.job"):
        descriptor = _open(path)
        if _lock(descriptor):
            path.unlink()
        else:
            content = json.loads(os.pread(descriptor, 1 << 20, 0))
            found[int(path.stem)] = Place(**content | {"devices": tuple(content["devices"])})
        os.close(descriptor)
    return dict(sorted(found.items()))


def _enter(path: Path) -> int:
    """A new file in the queue, locked until this process ends; its descriptor."""
    descriptor = _open(path, os.O_EXCL)
    _lock(descriptor)
    _held.append(descriptor)
    return descriptor


def _write(descriptor: int, place: Place) -> None:
    """Only in :func:`_alone`, and nobody reads what a job wrote that died over it."""
    content = json.dumps(asdict(place)).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def _open(path: Path, flags: int = 0) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags, 0o600)
    except OSError as error:
        raise DeviceError(f"{path}: cannot be opened ({error}); remove it.") from error


def _lock(descriptor: int) -> bool:
    """Whether the file could be locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
