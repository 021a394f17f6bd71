"""Columns of tables that one stage writes and another reads; importing this costs nothing."""

#: A test of a claim: what :func:`uad.evaluate.test_claims` gives and tables read.
SIGNIFICANCE = (
    "row against experiment test_dataset metric unit n difference ci_low ci_high effect_size "
    "p_value smallest_p p_holm"
).split()
