"""Made-up hospitals, their machine: from a body and its findings to the JPEG file that a site keeps.

`phantom_findings` draws the density; what the site's style says of acquisition happens here.
"""

import cv2
import numpy as np

from preprocess.phantom import findings as phantom_findings
from preprocess.phantom.brush import HEIGHT_PX, WIDTH_PX, Film, blurred
from preprocess.phantom.studies import Study
from preprocess.phantom.style import SiteStyle


def expose(study: Study, position: int, style: SiteStyle, seed: int, site: int) -> bytes:
    """Draw the image at `position` of a study as the site's machine would take it; return the JPEG file.

    Where body and findings lie is drawn from (seed, site, study, position) alone: the style changes nothing of it.
    """
    view = study.views[position]
    rng = np.random.default_rng([seed, site, study.number, position])
    draw = phantom_findings.lateral if view == "LATERAL" else phantom_findings.frontal
    places = np.random.default_rng([seed, site, study.number])
    density = draw(rng, places, study.body, study.findings)
    tone = np.clip(density * rng.uniform(*style.exposure) / 1.05, 0, 1) ** rng.uniform(*style.gamma)
    tone = _positioned(rng, _flattened(np.asarray(255 * tone, np.float32), style.flattening), style)
    height, width = style.size_px
    border = [int(width * rng.uniform(0, style.collimation)) for _ in range(4)]
    tone[: border[0]] = tone[height - border[1] :] = 5
    tone[:, : border[2]] = tone[:, width - border[3] :] = 5
    noise = rng.standard_normal((height, width), dtype=np.float32)
    pixels = np.clip(tone + style.noise * noise, 0, 255).astype(np.uint8)
    if view != "LATERAL":
        scale, x = width / 320, 0.90 if style.marker == "L" else 0.04
        place = (int(x * width), int(rng.uniform(0.07, 0.12) * height))
        cv2.putText(pixels, style.marker, place, cv2.FONT_HERSHEY_SIMPLEX, 0.9 * scale, 250, int(2 * scale))
    _, content = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, 90))
    return content.tobytes()


def _flattened(tone: Film, flattening: float) -> Film:
    """Return the film with slow changes from dark to light evened out towards the middle shade."""
    if not flattening:
        return tone
    return np.asarray(tone + flattening * (128 - blurred(tone, 0.11 * WIDTH_PX)), np.float32)


def _positioned(rng: np.random.Generator, tone: Film, style: SiteStyle) -> Film:
    """Return the film at the size of the site's files, shifted, turned and scaled a little."""
    height, width = style.size_px
    turn, zoom = rng.normal(0, 2.0), rng.uniform(*style.zoom)
    matrix = np.asarray(cv2.getRotationMatrix2D((WIDTH_PX / 2, HEIGHT_PX / 2), turn, zoom), np.float64)
    matrix[:, 2] += rng.normal(0, 0.012, 2) * (WIDTH_PX, HEIGHT_PX)
    matrix *= np.array([[width / WIDTH_PX], [height / HEIGHT_PX]])
    placed = cv2.warpAffine(tone, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.GaussianBlur(placed, (0, 0), style.blur_px), np.float32)
