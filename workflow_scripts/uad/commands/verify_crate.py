"""Verify a crate from nothing but itself."""

import argparse

from uad.audit.crate_verify import verify


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("crate", help="a zip file or folder")


def run(options: argparse.Namespace) -> int:
    """Print what is in the crate and whether it can be trusted.

    Returns:
        1 if it cannot.
    """
    found = verify(options.crate)
    print(f"{options.crate}: {found.files} files")
    for why, count in sorted(found.left_out.items()):
        print(f"  not included: {count} files: {why}")
    if found.verdict:
        print(found.verdict.text())
    for place, reasons in sorted(found.failures.items()):
        print(f"FAIL {place}: {'; '.join(reasons)}")
    print(f"SHA-256 of manifest.sha256: {found.seal}")
    if found.failures:
        print(f"FAILED: {len(found.failures)} files of this crate cannot be trusted.")
        return 1
    print("PASSED: the crate is as it was packed, and its tables follow from its metrics.")
    return 0
