"""From one raw scan to one packed volume. ANTs, torch, matplotlib are imported in functions."""
