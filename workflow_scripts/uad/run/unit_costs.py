"""The stored unit costs: ``resources/unit_costs.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from uad.core.errors import ConfigError
from uad.core.strict import Strict
from uad.run.jobs import ROOT

UNIT_COSTS = ROOT / "resources" / "unit_costs.yaml"


class Cost(Strict):
    """Seconds per unit of a rule's work."""

    rule: str = Field(description="'*': every job.")
    when: list[str] = Field(default_factory=list, description="Tags that a job must have.")
    per: Literal["job", "scan", "pass", "megavoxel", "step", "volume"]
    seconds: float = Field(0, ge=0)
    tflop: float = Field(0, ge=0, description="10^12 operations, done at the device's rate.")
    measured: bool = Field(description="false: derived as 'how' says.")
    how: str
    machine: str | None = None
    date: str | None = None

    @model_validator(mode="after")
    def _conditions(self) -> Cost:
        if self.measured and not (self.machine and self.date):
            raise ValueError("a measured cost needs 'machine' and 'date'")
        return self


class Rate(Strict):
    """Sustained operations per second."""

    tflops: float = Field(gt=0, description="10^12 multiplications and additions per second.")
    measured: bool
    how: str
    machine: str | None = None
    date: str | None = None


class Operations(Strict):
    """Operations of a network, counted by :func:`uad.cost.measure`."""

    family: str
    options: dict[str, Any] = Field(default_factory=dict, description="As in the config.")
    image_size: tuple[int, int]
    training: float = Field(ge=0, description="10^9 per slice, forward and backward.")
    late: float | None = Field(None, ge=0, description="The same at the end of the training.")
    inference: float = Field(ge=0, description="10^9 per slice.")


class UnitCosts(Strict):
    """The whole of ``resources/unit_costs.yaml``."""

    machines: dict[str, str]
    rates: dict[Literal["gpu", "cpu"], Rate]
    costs: list[Cost]
    operations: list[Operations]

    @model_validator(mode="after")
    def _machines(self) -> UnitCosts:
        for entry in [*self.costs, *self.rates.values()]:
            if entry.machine and entry.machine not in self.machines:
                raise ValueError(f"unknown machine '{entry.machine}'")
        return self


def load_costs(path: str | Path = UNIT_COSTS) -> UnitCosts:
    """Read and validate the unit costs.

    Raises:
        ConfigError: the file is missing or not valid.
    """
    try:
        return UnitCosts.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        lines = [f"  - {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
        raise ConfigError("\n".join([f"{path} is not valid:", *lines])) from None
