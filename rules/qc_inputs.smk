"""Input functions of qc.smk: sidecars, sheets of pictures, links to them."""

from uad.core.paths import SUFFIX
from uad.qc.gallery import sheets_of


def datasets_of_qc():
    """Data sets that quality control covers: those that this run works on."""
    return list(dict.fromkeys(name for name, _ in cfg.stores_of_run()))


def modalities_of_run(dataset):
    """Modalities of a data set that this run works on."""
    return [modality for name, modality in cfg.stores_of_run() if name == dataset]


def subjects_of(dataset, modality):
    """Subjects that have a scan of a modality."""
    return [subject for subject, found in participants(dataset) if found == modality]


def sidecars(wildcards):
    """Sidecars of a data set's scans, modality by modality; none where others preprocessed them."""
    if is_preprocessed(wildcards.dataset):
        return {}
    found = [
        dict(dataset=wildcards.dataset, subject=subject, suffix=SUFFIX[modality])
        for modality in modalities_of_run(wildcards.dataset)
        for subject in subjects_of(wildcards.dataset, modality)
    ]
    return {
        "masks": [tree.scan("json", space="orig", label="brain", desc="mask", **s) for s in found],
        "registrations": [tree.scan("json", space="SRI24", desc="preproc", **s) for s in found],
    }


def subjects_of_sheet(wildcards):
    """Who is on a sheet of pictures."""
    subjects = subjects_of(wildcards.dataset, wildcards.modality)
    return sheets_of(subjects)[int(wildcards.sheet)]


def packed_sheets(wildcards):
    """The sheets of pictures of all packed volumes of this run."""
    return {
        "sheets": [
            tree.packed_sheet(dataset, modality, number)
            for dataset, modality in cfg.stores_of_run()
            for number, _ in enumerate(sheets_of(subjects_of(dataset, modality)))
        ]
    }


def picture_links(dataset):
    """Links from the gallery to a data set's pictures, with {subject} and {suffix} to fill in."""
    page = os.path.dirname(tree.gallery())
    paths = {"packed": tree.packed_sheet(dataset)}
    if not is_preprocessed(dataset):
        for stage in ("skullstrip", "register"):
            paths[stage] = tree.scan("png", dataset=dataset, folder="figures", desc=stage)
    return {stage: Path(os.path.relpath(path, page)).as_posix() for stage, path in paths.items()}
