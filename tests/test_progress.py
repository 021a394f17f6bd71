"""What a run shows: how far it is, in words, and each failure once."""

import io
import logging
import re
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from tools.workflow import forked
from uad.run import progress
from uad.run.progress import WORDS, Job, Progress, in_words, last_line, message_in

TOY = '''
import threading, time
peak = [0]

def watch():
    while True:
        peak[0] = max(peak[0], threading.active_count())
        time.sleep(0.05)

if workflow.is_main_process:
    threading.Thread(target=watch, daemon=True).start()

onsuccess: open("threads", "w").write(str(peak[0]))

rule all:
    input: expand("out/{i}.txt", i=range(int(config.get("jobs", 60))))

rule make:
    output: "out/{i}.txt"
    log: "logs/{i}.log"
    shell:
        """
        if [ -e bad{wildcards.i} ]; then echo 'ERROR in rule make: x.nii: bad.' > {log}; exit 1; fi
        touch {output}
        """
'''


@pytest.fixture
def toy(tmp_path):
    """Runs a workflow of some jobs in ``tmp_path``."""
    (tmp_path / "Snakefile").write_text(TOY)

    def run(*arguments):
        command = ["--directory", tmp_path, "--snakefile", tmp_path / "Snakefile", "--cores", "2"]
        options = ["--workflow-profile", "none", "--logger", "uad", "--scheduler", "greedy"]
        return forked([*command, *options, *arguments])

    return run


def test_a_run_says_how_much_was_done_and_where_its_log_is_and_keeps_few_threads(toy, tmp_path):
    done = toy()
    assert done.returncode == 0 and done.stdout == ""
    first, second, *_, last = done.stderr.splitlines()
    assert (first, second) == ("Planning the run ...", "61 jobs.")
    assert last.startswith("61 of 61 jobs are done, after ")
    log = tmp_path / re.search(r"Log: (\S+)$", last)[1]
    assert log.read_text().count("Finished jobid") == 61
    # one for each core, and a handful; with Snakemake's own timers more than 20
    assert int((tmp_path / "threads").read_text()) < 10


def test_a_failed_job_is_reported_once_at_the_end(toy, tmp_path):
    (tmp_path / "bad7").touch()
    (tmp_path / "bad9").touch()
    done = toy("--keep-going", "--config", "jobs=10")
    assert done.returncode == 1
    report = done.stderr[done.stderr.rindex("FAILED") :]
    assert done.stderr.count("x.nii: bad.") == 1 and "bad." in report
    assert all(done.stderr.count(f"logs/{i}.log") == 1 for i in (7, 9))
    assert "make 7 (rule make)" in done.stderr and "make 9 (rule make)" in done.stderr
    assert not re.search("Error|Exception|non-zero", done.stderr)
    assert done.stderr.splitlines()[-1].startswith("8 of 11 jobs are done")


def test_a_file_that_two_jobs_complain_of_is_explained_once():
    from snakemake_logger_plugin_uad.failures import Failure, Failures

    found = Failures()
    for number, message in enumerate(("d/x.nii: damaged.", "all: 1 bad file:\n  d/x.nii")):
        found.found[number] = Failure(f"job {number}", message, [f"{number}.log"], 0)
    lines = "FAILED: job 0|FAILED: job 1|  all: 1 bad file:|    d/x.nii|  log: 0.log|  log: 1.log|"
    assert found.summary() == lines.replace("|", "\n")


def test_a_dry_run_prints_its_plan_and_an_unknown_target_its_error(toy):
    plan = toy("-n")
    assert plan.returncode == 0 and re.search(r"^make +60$", plan.stdout + plan.stderr, re.M)
    unknown = toy("nothing")
    assert unknown.returncode == 1 and "No rule to produce nothing" in unknown.stderr


def test_every_script_has_its_words(root):
    named = {}
    for path in (root / "rules").glob("*.smk"):
        for block in re.split(r"^(?=(?:rule|checkpoint|use rule) )", path.read_text(), flags=re.M):
            if match := re.match(r"(use )?(?:rule|checkpoint)(?: \w+ as)? (\w+)(?: with)?:", block):
                named[match[2]] = bool(match[1]) or "\n    script:" in block
    assert set(WORDS) == {name for name, script in named.items() if script}


def test_a_job_is_called_by_the_labels_of_the_config():
    wildcards = {"experiment": "cross_T2", "method": "p", "fold": "2"}
    said = in_words("train_model", wildcards, {"p": "pDDPM"})
    assert said == "training pDDPM on cross_T2, fold 2"
    assert in_words("my_rule", {"a": "1"}, {}) == "my rule 1"


def test_a_resumed_run_starts_where_it_was():
    run = Progress(0)
    run.plan({"make_table": 4, "paper": 1}, 31)
    assert (run.done, run.total) == (26, 31)
    run.start(1, Job("make_table", "making table1", [], 0))
    run.finish(1, 100)
    assert run.done == 27
    # three tables of 100 s each, one after the other; of the target nothing is known
    assert run.left(100) == "more than 5 min left"
    run.plan({"make_table": 4}, 30)
    assert run.left(100) == "about 5 min left"


def test_the_last_of_several_stages_is_named(tmp_path):
    (tmp_path / "log").write_text("epoch 3 of 50\n\n")
    run = Progress(0)
    run.start(1, Job("train_model", "training DAE", [str(tmp_path / "log")], 0))
    assert run.stage() == "training DAE (epoch 3 of 50)"
    run.start(2, Job("make_table", "making table1", [], 0))
    assert run.stage() == "making table1 and 1 more"


def test_a_message_is_read_from_the_log_of_this_run(tmp_path):
    log = tmp_path / "log"
    log.write_text("loaded\nERROR in rule make: a.nii: is bad.\nFetch it.\n")
    assert message_in([log]) == "a.nii: is bad.\nFetch it."
    assert message_in([log], since=time.time() + 60) is None
    log.write_text("Traceback\nKeyError: 3\n")
    assert message_in([log, tmp_path / "none"]) is None
    assert last_line(log) == "KeyError: 3"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A handler on a terminal, and what it shows."""
    from snakemake_logger_plugin_uad import LogHandler

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "RUN", progress.Run({"p": "pDDPM"}, lambda: (Counter(a=1), 4)))
    flags = "printshellcmds nocolor debug_dag verbose show_failed_logs stdout dryrun".split()
    settings = SimpleNamespace(quiet=set(), **dict.fromkeys(flags, False))
    handler = LogHandler(settings, None)
    yield handler, screen
    handler.close()


def record(event, message="", level=logging.INFO, **fields):
    made = logging.LogRecord("snakemake", level, "", 0, message, None, None)
    vars(made).update(event=event, **fields)
    return made


def test_a_terminal_has_one_line_with_warnings_above(terminal):
    handler, screen = terminal
    wildcards = {"experiment": "cross_T2", "method": "p", "fold": "2"}
    started = {"jobid": 1, "rule_name": "train_model", "wildcards": wildcards, "log": []}
    for event in (
        record(LogEvent.WORKFLOW_STARTED),
        record(LogEvent.RUN_INFO, stats={}, jobs_known=(Counter(train_model=1), 4)),
        record(LogEvent.JOB_INFO, **started),
        record(None, "Beware.", logging.WARNING),
        record(None, "Select jobs to execute..."),
    ):
        handler.handle(event)
    shown = screen.getvalue()
    assert "4 jobs, 3 of them done before." in shown
    assert "Beware.\n" in shown and "Select jobs" not in shown
    line = shown.rsplit("\r", 1)[1]
    assert " 3/4 " in line and "training pDDPM on cross_T2, fold 2" in line and "\n" not in line


def scheduler(selected, limit=100):
    """What the limit of timers looks at."""
    released = []
    return SimpleNamespace(
        job_rate_limiter=SimpleNamespace(_jobs=[0.0] * selected, max_jobs=limit),
        workflow=SimpleNamespace(
            dag=SimpleNamespace(has_unfinished_queue_input_jobs=lambda: False)
        ),
        _open_jobs=SimpleNamespace(release=lambda: released.append(1)),
        released=released,
    )


def test_a_timer_is_started_only_where_the_limit_held_jobs_back_and_once():
    from snakemake_logger_plugin_uad.timers import _schedule

    free, full = scheduler(99), scheduler(100)
    for _ in range(3):
        _schedule(free, 0.01)
        _schedule(full, 0.01)
    assert not hasattr(free, "_uad_timer") and full._uad_timer.daemon
    full._uad_timer.join()
    assert full.released == [1]
    _schedule(full, 0.01)
    full._uad_timer.join()
    assert full.released == [1, 1]


def test_another_scheduler_is_left_alone_with_a_warning(monkeypatch):
    from snakemake.scheduling.job_scheduler import JobScheduler

    from snakemake_logger_plugin_uad.timers import limit_timers

    monkeypatch.delattr(JobScheduler, "_schedule_reevalutation")
    assert "snakemake#3744" in limit_timers()
    assert not hasattr(JobScheduler, "_schedule_reevalutation")
