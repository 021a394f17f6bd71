"""The library beside this Snakefile, the config, and one run at a time."""

import json
import os
import shlex
import site
import sys
from pathlib import Path

import snakemake
from snakemake.exceptions import WorkflowError

# the repository itself, also for a run that works on a copy of it (uad.run.launch): as an input, a
# path must not depend on where a run was started from
REPOSITORY = os.environ.get("UAD_REPOSITORY") or workflow.basedir
LIBRARY = Path(workflow.basedir).resolve() / "workflow_scripts"

# jobs run this library and the packages of the environment, nothing of PYTHONPATH or of the user
outside = {site.getusersitepackages(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
for folder in outside - {"", *site.getsitepackages()}:
    if Path(snakemake.__file__).is_relative_to(folder):
        raise WorkflowError(
            f"Snakemake is loaded from {folder}, which is outside its environment, so that jobs would "
            "not find it. Use make, or an environment of its own (CONTRIBUTING.md)."
        )
os.environ.update(PYTHONPATH=str(LIBRARY), PYTHONNOUSERSITE="1")
os.environ.pop("PYTHONHOME", None)
sys.path.insert(0, str(LIBRARY))
if shlex.quote(sys.executable) != sys.executable:  # Snakemake 9.27 does not quote it
    folder, sys.executable = os.path.split(sys.executable)
    os.environ.update(PATH=os.pathsep.join([folder, os.environ.get("PATH", os.defpath)]))
# an environment may have been made for another copy, whose library the logger has loaded by now
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] == "uad":
        if not Path(module.__file__).resolve().is_relative_to(LIBRARY):
            del sys.modules[name]

from uad import config as uad_config
from uad.core.errors import UadError
from uad.core.paths import Tree
from uad.core.provenance import CODE_STATE, git_state
from uad.qc.decide import read_decisions
from uad.run import progress
from uad.run.room import check_one_kind
from uad.run.lock import lock_directory

try:
    cfg = uad_config.load(config)
    check_one_kind(cfg.results, cfg.phantom)
    decisions = read_decisions(
        cfg.qc.decisions, {name: d.modalities for name, d in cfg.datasets.items()}
    )
except UadError as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process:  # asked once, not by every job
    os.environ[CODE_STATE] = json.dumps(git_state())
    progress.RUN.watch(workflow, cfg.labels)

tree = Tree(cfg.results)


onstart:
    try:
        lock_directory()
    except UadError as error:
        raise WorkflowError(str(error)) from None


def count_slots():
    """Without a scheduler: make slots of the run's GPUs (--resources gpu=N), several of each.

    Each job asks for gpu=1, because a scheduler gives out what it reads there. So where jobs share
    the GPUs of this machine, gpu_slots limits them. A wrong count is no danger: uad.run.devices waits.
    """
    gpus = workflow.global_resources.get("gpu")
    local = workflow.is_main_process and workflow.resource_settings.nodes is None
    if local and gpus is not None and cfg.run.jobs_per_gpu > 1:
        for name in ("gpu", "gpu_slots"):
            workflow.register_resource(name, gpus.value * cfg.run.jobs_per_gpu)


count_slots()
