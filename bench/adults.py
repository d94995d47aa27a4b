"""Two adult hospitals for the benches that ask how well something learns: their files, how networks are judged.

Study files are made before, as docs/performance.md shows. A network's worth at a site is the mean AUROC over the
four labels of which both sites' TEST studies have at least 15 present; a label with fewer says little.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cxr_hvd.data.loader import Batching
from cxr_hvd.data.studies import StudySet
from cxr_hvd.stats.metrics import compute_metrics
from cxr_hvd.study.labels import LABELS, LabelPolicy
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.validation import predict

JUDGED = ("No Finding", "Cardiomegaly", "Atelectasis", "Pleural Effusion")
POLICY = LabelPolicy(dict.fromkeys(LABELS, "zeros"), dict.fromkeys(LABELS, "ignore"))
BATCH_SIZE = 64


@dataclass(frozen=True)
class Judge:
    """Judges networks on one split of all sites.

    Attributes:
        studies: those of the split, by site.
        image_size: pixels a side that the networks take.
    """

    studies: Mapping[str, StudySet]
    image_size: int

    def aurocs(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """Return by site the mean AUROC, 0 to 1, of the site's network on the site's studies."""
        return {site: self._auroc(networks[site], studies) for site, studies in self.studies.items()}

    def _auroc(self, network: nn.Module, studies: StudySet) -> float:
        scores_NL = predict(network, studies, range(len(studies)), Batching(BATCH_SIZE, self.image_size))
        metrics = compute_metrics(scores_NL, studies.targets, studies.known, studies.label_names)
        by_label = {label.label: label.auroc for label in metrics.labels}
        values = [value for name in JUDGED if (value := by_label[name]) is not None]
        if len(values) < len(JUDGED):
            raise SystemExit(f"expected an AUROC of each of {', '.join(JUDGED)}, found {by_label}")
        return statistics.mean(values)


def build_judge(files: Mapping[str, StudyFile], split: Split, image_size: int) -> Judge:
    """Build the judge of one split of these sites' studies."""
    return Judge({site: StudySet([file], split, POLICY) for site, file in files.items()}, image_size)


def open_sites(paths: Iterable[Path]) -> dict[str, StudyFile]:
    """Open the study files, by site."""
    return {path.stem: StudyFile(path) for path in paths}


def mean_of_sites(aurocs: Mapping[str, float]) -> float:
    """Return the mean over sites."""
    return statistics.mean(aurocs.values())
