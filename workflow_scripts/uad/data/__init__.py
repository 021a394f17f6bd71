"""Data sets: public raw layouts, participants tables, splits, packed slices."""
