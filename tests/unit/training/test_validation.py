"""How networks are judged while they train and afterwards: in float32, and said of each site."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import Config
from cxr_hvd.config.sections import Model
from cxr_hvd.data.loader import batching_of_run
from cxr_hvd.data.studies import StudySet
from cxr_hvd.models.build import build_model
from cxr_hvd.models.channels import OccupiedConv2d
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.display import TrainingDisplay
from cxr_hvd.training.records import Verdict
from cxr_hvd.training.validation import predict
from lab.study_files import write_study_file

NUM_STUDIES = 32
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def studies_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study_file(tmp_path_factory.mktemp("studies") / "north.h5", NUM_STUDIES, splits=(Split.VALIDATE,))


def config_of(path: Path, precision: str, batch_size: int = 8) -> Config:
    tree = {
        "experiment": "A",
        "sites": {"north": {"data": str(path)}},
        "model": {"image_size": 32},
        "training": {"batch_size": batch_size, "precision": precision},
    }
    return parse_config(tree, "test")


def scores_of(model: nn.Module, path: Path, precision: str, batch_size: int = 8) -> NDArray[np.float32]:
    config = config_of(path, precision, batch_size)
    with StudyFile(path) as file:
        studies = StudySet([file], Split.VALIDATE, config.labels.policy(file.header.label_names))
        return predict(model, studies, range(len(studies)), batching_of_run(config, num_cores=1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_scores_are_those_of_float32_whatever_the_precision_of_training(
    studies_path: Path, precision: str
) -> None:
    """So no two studies tie that float32 tells apart: bfloat16 knew 18 scores for 64 studies."""
    torch.manual_seed(0)
    stem = OccupiedConv2d(20, 8, kernel_size=7, stride=4)
    model = nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 14))
    scores_NL = scores_of(model, studies_path, precision)
    assert np.array_equal(scores_NL, scores_of(model, studies_path, "fp32"))
    assert all(len(np.unique(column)) > 0.9 * NUM_STUDIES for column in scores_NL.T)


def test_scores_do_not_depend_on_the_batch_they_came_in(studies_path: Path) -> None:
    model = build_model(Model(name="tiny"), 14, seed=0)
    few, many = (scores_of(model, studies_path, "fp32", batch_size) for batch_size in (2, 8))
    np.testing.assert_allclose(few, many, atol=1e-5)


def test_a_gpu_does_not_round_convolutions_while_it_judges_and_may_again_afterwards(studies_path: Path) -> None:
    seen = []

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 14)

        def forward(self, images_BMHW: Tensor) -> Tensor:
            seen.append((torch.backends.cudnn.conv.fp32_precision, torch.is_autocast_enabled("cpu")))
            logits_BL: Tensor = self.head(images_BMHW.mean(dim=(1, 2, 3))[:, None])
            return logits_BL

    before = torch.backends.cudnn.conv.fp32_precision
    scores_of(Network(), studies_path, "bf16")
    assert set(seen) == {("ieee", False)}
    assert torch.backends.cudnn.conv.fp32_precision == before


@pytest.mark.parametrize(
    ("aurocs", "agreed", "words"),
    [
        ({"north": 0.71, "south": 0.655}, 0.6825, "(north 0.710, south 0.655), the best so far"),
        (
            {"north": None, "south": 0.655},
            0.655,
            "0.655 (north undefined, south 0.655), the best",
        ),
        ({"north": None, "south": None}, None, "AUROC undefined at every site"),
    ],
)
def test_the_line_of_a_validation_shows_every_site(
    aurocs: dict[str, float | None], agreed: float | None, words: str
) -> None:
    text = StringIO()
    topology = Topology(0, ("north", "south"), (0, 1))
    display = TrainingDisplay(Console(file=text, width=200), topology, 0, 10, 8)
    verdict = Verdict(
        step=5,
        macro_auroc=aurocs["north"],
        mean_accuracy=0.8,
        agreed_auroc=agreed,
        is_best=agreed is not None,
        seconds=1.0,
        auroc_of_site=aurocs,
    )
    display.verdict(verdict)
    assert words in text.getvalue()
