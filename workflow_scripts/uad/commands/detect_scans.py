"""Use a trained model on a scan, or on all scans of a folder. Research code, no medical device."""

import argparse
import sys
from pathlib import Path

from uad.core.errors import DataError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("scan", type=Path, help="a scan (.nii, .nii.gz), or a folder of scans")
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="of a finished run: results/models/EXPERIMENT/METHOD/fold-K",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where maps and masks go"
    )
    parser.add_argument("--modality", help="of the scans; default: what their names tell")
    parser.add_argument(
        "--stripped", action="store_true", help="the scans are brains without skull"
    )
    parser.add_argument(
        "--test", help="test set whose threshold and noise level are used (default: the first)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: as in the run)")


def run(options: argparse.Namespace) -> int:
    """Write map, mask, picture and record of each scan.

    Returns:
        1 if a scan was refused; the others are done.
    """
    from uad.detect.apply import NOTICE, detect
    from uad.detect.scans import require_usable, scans_in
    from uad.detect.trained_model import TrainedModel

    print(NOTICE)
    model = TrainedModel(options.model, options.test, options.threads)
    scans, folder = scans_in(options.scan), options.scan.is_dir()
    refused = 0
    for scan in scans:
        try:
            subject = model.subject_of(scan)
            require_usable(model, scan, subject, options.modality, options.stripped)
            # scans of one name lie in folders of their own
            out = options.out / scan.parent.relative_to(options.scan) if folder else options.out
            record = detect(model, scan, subject, options.stripped, out)
        except DataError as error:
            if not folder:
                raise
            print(f"NOT DONE {error}", file=sys.stderr)
            refused += 1
            continue
        print(f"{scan.name}: {record['anomaly_ml']:.1f} ml above the threshold", flush=True)
        if subject.role and subject.role != "test":
            print(f"  the model has seen this scan: its role in the split is {subject.role}")
        for warning in record["warnings"]:
            print(f"  {warning}")
    if refused:
        print(f"{refused} of {len(scans)} scans were not done.", file=sys.stderr)
    print(f"Written to {options.out}")
    return int(refused > 0)
