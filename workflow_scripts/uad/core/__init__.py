"""What every stage needs: files, errors, seeds, paths, NIfTI, provenance."""
