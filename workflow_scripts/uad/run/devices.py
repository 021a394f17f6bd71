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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

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

#: Files whose locks this process holds until it ends.
_held: list[IO[str]] = []


class DeviceError(UadError):
    """No GPU can be claimed."""


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


def visible(listed: str | None, uuids: Sequence[str]) -> dict[str, str]:
    """The devices that CUDA would show to this process: UUID -> how the list calls it.

    ``listed`` is ``CUDA_VISIBLE_DEVICES`` (None: not set): numbers, UUIDs or their beginnings. As
    in CUDA, a name of no device ends the list. Numbers are in the order of the UUIDs, which is
    CUDA's own where all GPUs are of one kind or ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """
    if listed is None:
        return {uuid: uuid for uuid in uuids if uuid}
    found = {}
    for name in map(str.strip, listed.split(",") if uuids else ()):
        if name.startswith("MIG-"):
            found[name] = name
            continue
        matches = [
            uuid
            for number, uuid in enumerate(uuids)
            if uuid and (name == str(number) or (name.startswith("GPU-") and uuid.startswith(name)))
        ]
        if len(matches) != 1:
            break
        found[matches[0]] = name
    return found


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
        ``uuid`` (None where unknown), ``cuda_visible_devices`` as it is now, ``waited_s``,
        seconds, and ``sharing``.

    Raises:
        DeviceError: the folder of the lock files is not private, or ``cuda:<n>`` is not visible.
    """
    if wanted < 1:
        return _facts("none")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("a device must be claimed before CUDA is initialised")
    listed = os.environ.get(VISIBLE)
    devices = visible(listed, installed())
    if "SLURM_JOB_ID" in os.environ and listed:
        names = listed.split(",")
        if len(names) > 1:
            log.warning("SLURM gave this job %d GPUs (%s); it uses one", len(names), listed)
        if len(names) == 1 or not devices:  # without a driver nothing tells them apart
            os.environ[VISIBLE] = names[0]
            return _facts("slurm", next(iter(devices), None), sharing)
    if not devices:
        return _facts("none")
    pinned = device.partition(":")[2]
    if pinned.isdecimal():
        if int(pinned) >= len(devices):
            raise DeviceError(f"{device}: only {len(devices)} GPU(s) are visible to this job.")
        devices = dict([list(devices.items())[int(pinned)]])
    started = time.monotonic()
    uuid = _wait_for_one(devices, sharing, _private(locks or LOCKS))
    if not pinned.isdecimal():
        os.environ[VISIBLE] = devices[uuid]
    return _facts("lock", uuid, sharing, time.monotonic() - started)


def _facts(
    by: str, uuid: str | None = None, sharing: int = 1, waited: float = 0.0
) -> dict[str, Any]:
    listed, waited = os.environ.get(VISIBLE), round(waited, 1)
    facts = {"assigned_by": by, "uuid": uuid, "cuda_visible_devices": listed, "waited_s": waited}
    return facts | {"sharing": sharing}


def _private(folder: Path) -> Path:
    """The folder, made if it is not there; only this user may write to it."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    mine = found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
    if not stat.S_ISDIR(found.st_mode) or not mine:
        raise DeviceError(
            f"{folder}: must be a folder that belongs to you alone (mode 700), because it says "
            "which GPU is taken. Remove it, or ask its owner to."
        )
    # until this process ends: systemd-tmpfiles passes over folders that are locked
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
    return folder


def _wait_for_one(devices: Mapping[str, str], sharing: int, folder: Path) -> str:
    """Wait for a device with room for this job; its UUID.

    Only the job whose turn it is looks for one: else small jobs that come and go would keep one
    that fills a device waiting for ever. Parts are taken on all devices before one has two jobs.
    """
    parts = [(uuid, part) for part in range(sharing) for uuid in devices]
    told = my_turn = False
    with open(folder / "turn.lock", "a") as turn:
        while True:
            my_turn = my_turn or _lock(turn, fcntl.flock)
            for uuid, part in parts if my_turn else ():
                if _take(folder / f"{uuid.replace('/', '_')}.lock", part, sharing):
                    return uuid
            if not told:
                names = ", ".join(devices.values())
                log.warning("waiting for a GPU: other jobs hold all that may be used (%s)", names)
            told = True
            time.sleep(PAUSE)


def _take(path: Path, part: int, sharing: int) -> bool:
    """Lock a part of a device until this process ends, if it is free.

    The lock is lost when the process closes any descriptor of the file: it has one only.
    """
    file, size = open(path, "a"), WHOLE // sharing  # noqa: SIM115
    if _lock(file, fcntl.lockf, size, part * size):
        _held.append(file)
        return True
    file.close()
    return False


def _lock(file: IO[str], lock: Callable[..., None], *place: int) -> bool:
    """Whether the file, or this place in it, could be locked."""
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *place)
    except (BlockingIOError, PermissionError):
        return False
    return True
