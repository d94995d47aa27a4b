"""The programs of an export: written, run by their own runtimes, and compared with PyTorch."""

from importlib.metadata import version
from pathlib import Path

import torch

from cxr_hvd.deploy.card.run_facts import RunFacts
from cxr_hvd.deploy.export.bundle import ONNX_PROGRAM, TORCH_PROGRAM
from cxr_hvd.deploy.export.check import CheckStudies, check_program, studies_of_file, synthetic_studies
from cxr_hvd.deploy.export.onnx_file import open_onnx, write_onnx
from cxr_hvd.deploy.export.torch_program import build_program, open_program, write_program
from cxr_hvd.deploy.program_check import ProgramCheck
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import CxrHvdError


def write_programs(
    folder: Path, network: TrainedNetwork, facts: RunFacts, check: Path | None
) -> tuple[ProgramCheck, ...]:
    """Write both programs of a network, and check them.

    Raises:
        CxrHvdError: the network cannot be made a program, or one is off by more than 0.0001.
    """
    studies = choose_studies(network, facts, check)
    program = build_program(network)
    torch_path, onnx_path = folder / TORCH_PROGRAM, folder / ONNX_PROGRAM
    write_program(torch_path, program)
    write_onnx(onnx_path, program)
    with open_program(torch_path) as loaded:
        torch_check = check_program(
            network,
            torch_path,
            lambda images_NCHW: loaded(torch.from_numpy(images_NCHW)).numpy(),
            ("PyTorch", version("torch")),
            studies,
        )
    runtime = ("ONNX Runtime", version("onnxruntime"))
    return torch_check, check_program(network, onnx_path, open_onnx(onnx_path), runtime, studies)


def choose_studies(network: TrainedNetwork, facts: RunFacts, check: Path | None) -> CheckStudies:
    """Return the studies of a file that was asked for, else of the run's own, else synthetic ones."""
    if check is not None:
        return studies_of_file(check)
    try:
        if facts.data is not None:
            return studies_of_file(facts.data)
    except CxrHvdError:
        pass  # the run's data are another site's, or gone: the card says that studies were synthetic
    return synthetic_studies(network.image_size)
