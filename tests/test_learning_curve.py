"""The command that draws the learning curve on the phantom."""

import pandas as pd
import pytest

from tools import learning_curve


@pytest.mark.slow
def test_a_stopped_curve_goes_on_to_the_same_points(tmp_path, monkeypatch):
    for name, number in (("TRAINING", 2), ("VALIDATION", 1), ("TEST", 1)):
        monkeypatch.setattr(learning_curve, name, number)

    def points(folder, *steps):
        learning_curve.run(tmp_path / folder, range(1), steps)
        assert (tmp_path / folder / "learning-curve.png").exists()
        return pd.read_csv(tmp_path / folder / "learning-curve.csv").drop(columns="cpu_seconds")

    first = points("stopped", 1)
    assert first["method"].tolist() == ["intensity alone", "pDDPM", "pDDPM-IQA"]
    assert first["auprc"].between(0, 100).all()
    resumed, whole = points("stopped", 1, 2), points("whole", 1, 2)
    assert resumed["steps"].tolist() == [0, 1, 1, 2, 2]
    pd.testing.assert_frame_equal(resumed, whole)
