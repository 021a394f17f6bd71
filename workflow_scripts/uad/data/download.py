"""A data set from its public home into its raw tree."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from uad.core.errors import DataError
from uad.core.patterns import AnyLayout
from uad.data.disk import lock, require_room, size_of
from uad.data.fetch import Fetched, fetch, finished
from uad.data.layouts import demographics_file, table_of
from uad.data.people import add_ages
from uad.data.place import Imported, copy, import_sources, state_of
from uad.data.progress_lines import say
from uad.data.sources import DataSet, File, load_registry

WAYS = (
    "First {}. Then either put the archive into a folder and run 'make import ARCHIVES=<folder>', "
    "or let this program fetch it: pip install synapseclient, and put a personal access token "
    "(synapse.org, account settings, scopes view and download) into ~/.synapseConfig or "
    "SYNAPSE_AUTH_TOKEN."
)


def download(
    layout: AnyLayout, archives: Path, raw_root: Path, modalities: Iterable[str] | None = None
) -> tuple[Imported, list[Fetched]]:
    """Get the files of a data set that hold some modalities (ours; default: all) from its home and
    unpack them into its raw tree.

    A file whose images are in the raw tree already, however they came there, is not needed
    and not asked for. Tables about the subjects come along, if their home gives them.

    Returns:
        What is in the raw tree, and the files in ``archives`` that it is from, as far as they are
        still there.

    Raises:
        DataError: as :func:`uad.data.fetch.fetch` and :func:`uad.data.place.import_sources`; or
            the data set needs a registration that is not there.
    """
    entry = load_registry().of_layout(layout)
    needs, found = entry.layout.needs(modalities), entry.layout.scan(raw_root)
    there, wanted = state_of(layout, raw_root, needs), entry.lacking(found, needs)
    count = f"{there.subjects} of {there.expected} subjects with {', '.join(needs)}"
    if not wanted:
        say(f"{raw_root}: complete, {count} by their names; nothing is downloaded")
        kept = [finished(file, archives) for file in entry.files_for(needs)]
        return there, [*filter(None, kept), *_place_tables(entry, layout, archives, raw_root)]
    if found:
        say(f"{raw_root}: {count} are there; the rest is in {entry.names_of(wanted)}")
    _require_room(entry, wanted, archives, raw_root)
    try:
        if entry.access == "registration":
            files = [fetch_synapse(entry, archives)]
        else:
            files = [fetch(file, archives) for file in wanted]
    except DataError as error:
        if not there.subjects:
            raise
        raise DataError(
            f"{error}\n{raw_root} holds {there.subjects} complete subjects of {there.expected}; "
            "to go on with these, set 'source: folder' for this data set."
        ) from None
    for file in files:
        if not file.verified:
            say(f"{file.path.name}: no published checksum; recorded {file.checksum}")
    # before the images: once these are there nothing is asked for any more
    for table in entry.tables if not demographics_file(layout, raw_root) else ():
        try:
            fetch(table, archives)
        except DataError as error:
            say(f"{error}\nIt is not needed: without it the ages are unknown.")
    did = import_sources(layout, [file.path for file in files], raw_root)
    tables = _place_tables(entry, layout, archives, raw_root)
    return state_of(layout, raw_root, needs, placed=did.placed, kept=did.kept), [*files, *tables]


def _require_room(entry: DataSet, wanted: list[File], archives: Path, raw_root: Path) -> None:
    """Check that the disks have room for all that is to come, before the first byte."""
    needs: Counter[Path] = Counter()
    for file in wanted[:1] if entry.any_file else wanted:
        path, size = archives / file.name, file.bytes or 0
        there = size if path.is_file() else size_of(path.with_name(f"{path.name}.part"))
        needs[archives.resolve()] += max(0, size - there)
        needs[raw_root.resolve()] += file.unpacked_bytes or size
    require_room(needs, f"{entry.names_of(wanted)} (and what is in them)")


def _place_tables(
    entry: DataSet, layout: AnyLayout, archives: Path, raw_root: Path
) -> list[Fetched]:
    """Copy the tables that were downloaded into a raw tree, unless it has one or they are odd."""
    subjects = table_of({"name": name, "site": ""} for name in entry.layout.scan(raw_root))
    placed = []
    for file in entry.tables if not demographics_file(layout, raw_root) else ():
        try:
            if there := finished(file, archives):
                copy(there.path, raw_root / file.name)
                add_ages(subjects, layout, raw_root)
                placed.append(there)
        except (DataError, OSError) as error:
            (raw_root / file.name).unlink(missing_ok=True)
            say(f"{error}\n{file.name} is not used: the ages are unknown.")
    return placed


def fetch_synapse(entry: DataSet, folder: Path) -> Fetched:
    """Get the archive of a data set from Synapse with the user's own client and token.

    Any file in ``folder`` that holds the whole data set makes that needless.
    The token stays with ``synapseclient``: it is neither read, nor kept, nor shown here.

    Raises:
        DataError: the client or the token is missing, or Synapse does not give the file.
    """
    file = next(file for file in entry.files if file.synapse)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / file.name):
        for known in entry.files if entry.any_file else [file]:
            if there := finished(known, folder):
                return there
        try:
            os.replace(_from_synapse(file, folder), folder / file.name)
            return finished(file, folder)
        except ImportError:
            problem = "cannot be downloaded without registration."
        except LookupError:
            problem = "no Synapse token is configured."
        except Exception as error:
            # its text may quote a request: only its kind is shown
            problem = (
                f"Synapse did not give {file.synapse} ({type(error).__name__}). Is the token "
                "valid, and are the terms accepted?"
            )
        raise DataError(f"{entry.title}: {problem} {WAYS.format(entry.terms)}")


def _from_synapse(file: File, folder: Path) -> str:
    client = importlib.import_module("synapseclient")
    config = Path("~/.synapseConfig").expanduser()
    if "SYNAPSE_AUTH_TOKEN" not in os.environ and not config.is_file():
        raise LookupError
    session = client.Synapse(silent=True)
    session.login(silent=True)
    return session.get(file.synapse, downloadLocation=str(folder)).path
