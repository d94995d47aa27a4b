"""An exported folder as a MONAI bundle: its metadata, its configuration for inference, and its scripts.

Paths are those of MONAI's bundle specification, but for `model.pt`: a pickle, which is never written here; the
network is `models/model.pt2`. MONAI is not needed to write a bundle.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from cxr_hvd import __version__
from cxr_hvd.deploy.program_check import ProgramCheck
from cxr_hvd.deploy.rendering import render
from cxr_hvd.study.layout import MAX_IMAGES
from cxr_hvd.training.network_record import NetworkRecord

METADATA, INFERENCE = "configs/metadata.json", "configs/inference.json"
TORCH_PROGRAM, ONNX_PROGRAM = "models/model.pt2", "models/model.onnx"
SCRIPTS = ("preprocess.py", "answers.py")
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
EXPORT_VERSION = "1.0.0"
TRIED_WITH = {"monai": "1.6.1", "pytorch-ignite": "0.5.5"}
RASTER = "jpeg-gray8-reduced2x-area-stretch-1"
STORED_SIZE = 256
"""The side of images in a study file, where nothing says another."""


def build_metadata(
    record: NetworkRecord, checks: Sequence[ProgramCheck], digests: Mapping[str, str], private_of: Sequence[str]
) -> dict[str, Any]:
    """Build `configs/metadata.json`: MONAI's keys, and all that this program knows under `cxr_hvd`.

    Args:
        digests: SHA-256 of each other file of the folder, by its path there.
        private_of: the sites whose private blocks are in the folder.
    """
    size, labels = record.image_size, record.label_names
    never_trained = [label for label in labels if label not in record.trained_labels]
    return {
        "schema": SCHEMA,
        "version": EXPORT_VERSION,
        "changelog": {EXPORT_VERSION: f"exported by cxr_hvd {__version__}"},
        "monai_version": TRIED_WITH["monai"],
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            "opencv-python-headless": version("opencv-python-headless"),
            "pytorch-ignite": TRIED_WITH["pytorch-ignite"],
        },
        "name": f"Chest X-ray findings: {record.name}, {record.site}",
        "task": f"{len(labels)} findings of a chest X-ray study of 1 to {MAX_IMAGES} images",
        "description": (
            f"A {record.name}, experiment {record.experiment} of the hospitals {', '.join(record.sites)}. "
            "README.md is its model card."
        ),
        "authors": "to be named by the sites",
        "copyright": "to be named by the sites",
        "data_type": "JPEG or PNG files, one channel an image (preprocess.py)",
        "image_classes": f"one gray image a channel, 0 to 1; zeros after a study's last of {MAX_IMAGES}",
        "pred_classes": "a probability for each finding; NaN for a finding that no study ever trained",
        "intended_use": "Research. Not a medical device, and not for diagnosis.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "X-ray",
                    "num_channels": MAX_IMAGES,
                    "spatial_shape": [size, size],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(image): f"image {image + 1} of the study" for image in range(MAX_IMAGES)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "num_channels": len(labels),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": dict(zip(map(str, range(len(labels))), labels, strict=True)),
                }
            },
        },
        "cxr_hvd": {
            "tool": f"cxr_hvd {__version__}",
            "network": record.model_dump(mode="json"),
            "never_trained": never_trained,
            "private_blocks_of": list(private_of),
            "outputs": "probabilities",
            "checks": [check.model_dump(mode="json") for check in checks],
            "sha256": dict(sorted(digests.items())),
        },
    }


def build_inference() -> dict[str, Any]:
    """Build `configs/inference.json`: all studies of a folder to a table of answers, by MONAI's own parts."""
    return {
        "imports": ["$import sys", "$import torch", "$import answers"],
        "bundle_root": ".",
        "dataset_dir": "studies",
        "output": "answers.csv",
        "device": "$'cuda' if torch.cuda.is_available() else 'cpu'",
        "data": "$answers.find_studies(@dataset_dir)",
        "network_def": f"$answers.open_network(@bundle_root + '/{TORCH_PROGRAM}', @device)",
        "network": "@network_def",
        "preprocessing": {"_target_": "Lambda", "func": "$answers.load"},
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 4,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {"_target_": "SimpleInferer"},
        "answers": "$answers.Answers()",
        "postprocessing": {"_target_": "Lambda", "func": "@answers"},
        "handlers": [],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()", "$@answers.write(@output)"],
    }


def render_scripts(record: NetworkRecord, stored_size: int = STORED_SIZE) -> dict[str, str]:
    """Return the scripts of a bundle by their names: from image files to input, and from input to answers.

    Args:
        stored_size: the side of the images in the study files that the network was trained on.
    """
    values = {
        "pixels": re.sub(r"[^A-Za-z0-9_.-]", "?", record.pixels),  # a name from elsewhere becomes no code
        "is_raster": record.pixels == RASTER,
        "image_size": record.image_size,
        "stored_size": stored_size,
        "max_images": MAX_IMAGES,
    }
    return {name: render(name, **values) for name in SCRIPTS}


def as_json(content: Mapping[str, Any]) -> str:
    """Return JSON text of a configuration."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
