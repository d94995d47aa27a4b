"""What the network sees, as one picture: a row for each study of a batch, a tile for each channel in use.

Look before you train: a label beside the wrong film, a flip that should not be, a shift that cuts off the lungs.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.schema import Config
from cxr_hvd.data.loader import Batch, train_batches
from cxr_hvd.data.studies import open_training_data
from cxr_hvd.errors import UsageError
from cxr_hvd.files import check_output, replaced_file

TILE_PX = 192
MARGIN_PX, GAP_PX, NUMBER_PX, LINE_PX = 24, 8, 28, 17
NOTHING = "none present"
GROUND, FRAME, BRIGHT, DIM = (17, 20, 24), (58, 64, 72), (232, 234, 237), (140, 148, 158)


def show_batch(config: Config, site: str, out: Path, step: int = 0, overwrite: bool = False) -> None:
    """Write the training batch of a step as a PNG, as a site sees it that trains on one rank.

    Raises:
        CxrHvdError: no site of the config has this name, its study file cannot be used, `out` cannot be written,
            or is there already and `overwrite` is False.
    """
    alone = config.alone(site)
    check_output(out, overwrite)
    data = open_training_data(alone, Topology(0, (site,), (0,)))
    try:
        size = alone.model.image_size
        with closing(train_batches(data.studies, data.shuffle, [step], size, alone.augmentation)) as batches:
            write_batch_sheet(next(batches), out, data.studies.label_names, f"{site}, step {step}")
    finally:
        for file in data.files:
            file.close()


def write_batch_sheet(batch: Batch, path: Path, label_names: Sequence[str], title: str = "") -> None:
    """Write a batch as a PNG: tiles as the network sees them, the labels that are present beside them.

    Labels that are not known are not listed; nothing says which study of the file a row is.

    Raises:
        UsageError: the file cannot be written.
    """
    images_BMHW, present_BL = batch.images.cpu().numpy(), (batch.known & (batch.targets > 0)).cpu().numpy()
    num_studies, num_channels = images_BMHW.shape[:2]
    pitch = TILE_PX + GAP_PX
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    widest_px = int(max(small.getlength(name) for name in [*label_names, NOTHING]))
    left, top = MARGIN_PX + NUMBER_PX + widest_px + 2 * GAP_PX, MARGIN_PX + 3 * LINE_PX
    sheet = Image.new(
        "RGB", (left + num_channels * pitch + MARGIN_PX, top + num_studies * pitch + MARGIN_PX), GROUND
    )
    draw = ImageDraw.Draw(sheet)
    size = f"{num_studies} studies, {images_BMHW.shape[-1]} px"
    draw.text((MARGIN_PX, MARGIN_PX - 6), ": ".join(filter(None, [title, size])), BRIGHT, font)
    for channel in range(num_channels):
        draw.text((left + channel * pitch, top - LINE_PX), f"channel {channel + 1}", DIM, small)
    for row, (images_MHW, present_L) in enumerate(zip(images_BMHW, present_BL, strict=True)):
        y = top + row * pitch
        draw.text((MARGIN_PX, y), f"{row + 1}", DIM, font)
        names = [name for name, is_present in zip(label_names, present_L, strict=True) if is_present]
        line_px = min(LINE_PX, TILE_PX // max(len(names), 1))
        for line, name in enumerate(names or [NOTHING]):
            draw.text((MARGIN_PX + NUMBER_PX, y + 2 + line * line_px), name, BRIGHT if names else DIM, small)
        for channel, image_HW in enumerate(images_MHW):
            if image_HW.any():
                x = left + channel * pitch
                draw.rectangle((x - 1, y - 1, x + TILE_PX, y + TILE_PX), outline=FRAME)
                sheet.paste(Image.fromarray(_tile(image_HW)), (x, y))
    try:
        with replaced_file(path) as beside:
            sheet.save(beside, format="PNG")
    except OSError as error:
        raise UsageError(f"{path}: cannot write the picture ({error.strerror or error})") from error


def _tile(image_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image of 0 to 1 as grays of `TILE_PX` a side; pixels of a small image stay squares."""
    is_small = len(image_HW) < TILE_PX
    tile_HW = cv2.resize(
        image_HW, (TILE_PX, TILE_PX), interpolation=cv2.INTER_NEAREST if is_small else cv2.INTER_AREA
    )
    grays_HW: NDArray[np.uint8] = np.rint(tile_HW * 255).astype(np.uint8)
    return grays_HW
