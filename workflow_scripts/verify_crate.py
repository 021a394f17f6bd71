"""Verify a crate from nothing but itself. Usage: verify_crate.py CRATE (a zip file or folder)."""

import sys

from uad.audit import terminal
from uad.crate import verify
from uad.errors import UadError

if len(sys.argv) != 2:
    sys.exit(__doc__)
try:
    found = verify(sys.argv[1])
except UadError as error:
    sys.exit(f"ERROR: {error}")
print(f"{sys.argv[1]}: {found.files} files")
for why, count in sorted(found.left_out.items()):
    print(f"  not included: {count} files: {why}")
if found.verdict:
    print(terminal(found.verdict))
for place, reasons in sorted(found.failures.items()):
    print(f"FAIL {place}: {'; '.join(reasons)}")
print(f"SHA-256 of manifest.sha256: {found.seal}")
if not found.passed:
    sys.exit(f"FAILED: {len(found.failures)} files of this crate cannot be trusted.")
print("PASSED: the crate is as it was packed, and its tables follow from its metrics.")
