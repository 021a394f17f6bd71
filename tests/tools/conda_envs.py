"""Conda environments from the pip pins, one per resource class (``--write`` to regenerate).

No conda channel takes part in the tests: the files are held to the pins, but
their installation is untested.
"""

import re
import sys
from pathlib import Path

ENVS = Path(__file__).resolve().parents[2] / "envs"
CLASSES = ("preprocess", "train", "report")


def pins(path: Path) -> dict[str, set[str]]:
    """Requirement to the classes named in its comment."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9-]+==[\w.]+)\s+#\s*(.*)", line):
            found[match[1]] = set(re.findall(r"\[(\w+)\]", match[2]))
    return found


def environment(name: str) -> str:
    """Text of ``envs/<name>.yaml``."""
    wanted = [r for r, classes in pins(ENVS / "requirements.txt").items() if name in classes]
    atlas = [r for r, classes in pins(ENVS / "requirements-nodeps.txt").items() if name in classes]
    note = "".join(f"# then: pip install --no-deps {requirement}\n" for requirement in atlas)
    return (
        "# Generated from envs/requirements.txt by 'make envs'. Untested: only the pip\n"
        "# environment of the Makefile is tested.\n"
        f"{note}"
        f"name: uad-{name}\nchannels: [conda-forge]\n"
        "dependencies:\n  - python=3.11\n  - pip\n  - pip:\n"
        + "".join(f"      - {requirement}\n" for requirement in wanted)
    )


if __name__ == "__main__" and "--write" in sys.argv:
    for name in CLASSES:
        (ENVS / f"{name}.yaml").write_text(environment(name), encoding="utf-8")
