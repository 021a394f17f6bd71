"""Every path of the results tree, built from entities in one place.

Arguments default to Snakemake wildcards, so that the same function names a
pattern in a rule and a concrete file in a target. File names follow
BIDS-Derivatives; ``T1ce`` is not a BIDS suffix (BIDS would write
``ce-gadolinium_..._T1w``) but keeps one name per modality.
"""

from __future__ import annotations

from dataclasses import dataclass

SUFFIX = {"T1": "T1w", "T1CE": "T1ce", "T2": "T2w", "FLAIR": "FLAIR"}
ENTITIES = ("from", "to", "mode", "space", "label", "desc")
MODALITY = {suffix: modality for modality, suffix in SUFFIX.items()}


@dataclass(frozen=True)
class Tree:
    """The results tree below one root."""

    root: str = "results"

    def raw(self, dataset: str = "{dataset}") -> str:
        """Root of a generated raw tree."""
        return f"{self.root}/raw/{dataset}"

    def manifest(self, dataset: str = "{dataset}") -> str:
        """List of the files of a generated raw tree, with checksums."""
        return f"{self.root}/raw/{dataset}.manifest.tsv"

    def downloaded(self, dataset: str = "{dataset}") -> str:
        """Record of a download: files, checksums, images."""
        return f"{self.root}/raw/{dataset}.download.json"

    def participants(self, dataset: str = "{dataset}") -> str:
        """Table of subjects and their raw files."""
        return f"{self.root}/participants/{dataset}.tsv"

    def atlas(self, name: str) -> str:
        """A file of the resampled atlas."""
        return f"{self.root}/atlas/{name}"

    def scan(
        self,
        ending: str,
        *,
        dataset: str = "{dataset}",
        subject: str = "{subject}",
        suffix: str = "{suffix}",
        folder: str = "anat",
        **entities: str,
    ) -> str:
        """A derivative of one scan, for example ``scan("nii.gz", space="SRI24", desc="preproc")``.

        The other arguments are BIDS entities; the name has them in the order of BIDS.
        """
        ordered = (f"{key}-{entities.pop(key)}" for key in ENTITIES if key in entities)
        parts = [f"sub-{subject}", *ordered]
        if entities:
            raise ValueError(f"unknown BIDS entities: {', '.join(entities)}")
        name = "_".join([*parts, suffix])
        return f"{self.root}/preprocessed/{dataset}/sub-{subject}/{folder}/{name}.{ending}"

    def brain_masks(
        self, dataset: str = "{dataset}", suffix: str = "{suffix}", batch: int | str = "{batch}"
    ) -> str:
        """Brain masks that a network predicted for a batch of scans."""
        return f"{self.root}/preprocessed/{dataset}/brain_masks/{suffix}_batch-{batch}.safetensors"

    def slices(self, dataset: str = "{dataset}", modality: str = "{modality}") -> str:
        """Packed volumes of one data set and modality."""
        return f"{self.root}/slices/{dataset}_{modality}.safetensors"

    def split(self, experiment: str = "{experiment}", fold: int | str = "{fold}") -> str:
        """Roles of all subjects in one fold."""
        return f"{self.root}/splits/{experiment}/fold-{fold}.tsv"

    def validation(self, ending: str, dataset: str = "{dataset}") -> str:
        """Verdict of the raw scans' validation."""
        return f"{self.root}/validation/{dataset}.{ending}"

    def quality(self, ending: str, dataset: str = "{dataset}") -> str:
        """Measures and flags of the scans of a data set."""
        return f"{self.root}/qc/{dataset}.{ending}"

    def packed_sheet(
        self,
        dataset: str = "{dataset}",
        modality: str = "{modality}",
        sheet: int | str = "{sheet}",
    ) -> str:
        """Pictures of some packed volumes in one file."""
        return f"{self.root}/qc/packed/{dataset}_{modality}_sheet-{sheet}.webp"

    def gallery(self) -> str:
        """The page on which a person goes through all scans."""
        return f"{self.root}/qc/gallery.html"

    def quality_summary(self, ending: str) -> str:
        """Counts of the quality control, for the report."""
        return f"{self.root}/qc/summary.{ending}"

    def air(self, experiment: str = "{experiment}", fold: int | str = "{fold}") -> str:
        """AIR statistics and the inversion that they imply."""
        return f"{self.root}/air/{experiment}/fold-{fold}.json"

    def _cell(self, stage: str, experiment: str, method: str, fold: int | str, rest: str) -> str:
        return f"{self.root}/{stage}/{experiment}/{method}/fold-{fold}/{rest}"

    def model(
        self,
        name: str,
        experiment: str = "{experiment}",
        method: str = "{method}",
        fold: int | str = "{fold}",
    ) -> str:
        """A file of a trained model."""
        return self._cell("models", experiment, method, fold, name)

    def per_test(
        self,
        stage: str,
        ending: str,
        experiment: str = "{experiment}",
        method: str = "{method}",
        fold: int | str = "{fold}",
        test: str = "{test}",
    ) -> str:
        """A file per test set: reconstructions, maps, readiness, thresholds or metrics."""
        return self._cell(stage, experiment, method, fold, f"{test}.{ending}")

    def table(self, ending: str, table: str = "{table}") -> str:
        """A table of the paper."""
        return f"{self.root}/tables/{table}.{ending}"

    def figure(self, ending: str, figure: str = "{figure}") -> str:
        """A figure."""
        return f"{self.root}/figures/{figure}.{ending}"

    def study(self, ending: str, study: str = "{study}") -> str:
        """Report of a study: the same reconstructions under several variants."""
        return f"{self.root}/studies/{study}.{ending}"

    def log(self, rule: str, *wildcards: str) -> str:
        """Log of a job."""
        return f"{self.root}/logs/{rule}/{'/'.join(wildcards) or 'job'}.log"
