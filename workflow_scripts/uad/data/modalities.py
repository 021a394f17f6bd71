"""Which modalities each public data set has, and what its files call them."""

LAYOUT_MODALITIES = {
    "ixi": {"T1": "T1", "T2": "T2"},
    "brats21": {"T1": "t1", "T1CE": "t1ce", "T2": "t2", "FLAIR": "flair"},
    "mslub": {"T1": "T1W", "T1CE": "T1WKS", "T2": "T2W", "FLAIR": "FLAIR"},
}
