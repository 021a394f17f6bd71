"""A trained model on scans of one's own: anomaly map and mask on the scan's grid.

The steps are those of the rules ``skullstrip_scan`` to ``evaluate_volumes``, with the same
functions and params: for a test volume of a run on a CPU the map is the run's own, to the bit.
"""
