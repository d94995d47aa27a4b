"""The picture of a batch: each image in use, the labels that are known, and nothing of a patient."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cxr_hvd.config.file import load_config
from cxr_hvd.config.sections import Labels
from cxr_hvd.data.batch_sheet import TILE_PX, show_batch, write_batch_sheet
from cxr_hvd.data.loader import Batch, train_batches
from cxr_hvd.data.studies import Shuffle, StudySet
from cxr_hvd.errors import CxrHvdError, UsageError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from lab.study_files import write_study_file

POLICY = Labels().policy(LABELS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_study_file(tmp_path / "north.h5", num_studies=23, splits=(Split.TRAIN,))


def test_the_sheet_shows_each_image_in_use_and_nothing_else(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, TILE_PX, TILE_PX)
    images[0, 0], images[0, 1], images[1, 0] = 0.2, 0.4, 0.6
    targets, known = torch.zeros(2, 14), torch.ones(2, 14, dtype=torch.bool)
    write_batch_sheet(Batch(images, targets, known), tmp_path / "batch.png", LABELS)
    with Image.open(tmp_path / "batch.png") as sheet:
        grays = np.asarray(sheet.convert("RGB"))
        assert not sheet.text  # type: ignore[attr-defined]
    is_gray = (grays == grays[..., :1]).all(-1)
    for gray, pixels in ((51, TILE_PX**2), (102, TILE_PX**2), (153, TILE_PX**2), (0, 0)):
        assert ((grays[..., 0] == gray) & is_gray).sum() == pixels
    before = grays.copy()
    targets[0, 0], targets[1, 1], known[1, 1] = 1, 1, False
    write_batch_sheet(Batch(images, targets, known), tmp_path / "batch.png", LABELS)
    with Image.open(tmp_path / "batch.png") as sheet:
        rows = np.flatnonzero((np.asarray(sheet.convert("RGB")) != before).any((1, 2)))
    assert len(rows) and rows.max() - rows.min() < 20  # the known one changed a line, the unknown one nothing


def test_show_batch_is_the_batch_of_a_step(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    sites = f"{{north: {{data: {path}, ranks: 2}}, south: {{data: /nowhere.h5}}}}"
    file.write_text(f"experiment: D\nsites: {sites}\nmodel: {{image_size: 32}}\ntraining: {{batch_size: 4}}\n")
    config = load_config(file)
    show_batch(config, "north", tmp_path / "shown.png", step=6)
    studies = StudySet([StudyFile(path)], Split.TRAIN, POLICY)
    shuffle = Shuffle(23, 4, 1, 0, (config.seed, int.from_bytes(b"north", "big")))
    for batch in train_batches(studies, shuffle, [6], 32, config.augmentation):
        write_batch_sheet(batch, tmp_path / "expected.png", LABELS, "north, step 6")
    assert (tmp_path / "shown.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    with pytest.raises(CxrHvdError, match="no site is called 'nort'"):
        show_batch(config, "nort", tmp_path / "x.png")
    with pytest.raises(UsageError, match="cannot write the picture"):
        show_batch(config, "north", tmp_path / "missing" / "x.png")
