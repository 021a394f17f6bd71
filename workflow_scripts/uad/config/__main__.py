"""Write what is generated from the config's model: ``python -m uad.config`` (``make schema``)."""

from uad.config.reference import GENERATED

for path, render in GENERATED.items():
    path.write_text(render(), encoding="utf-8")
