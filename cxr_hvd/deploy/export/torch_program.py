"""A trained network as a program of `torch.export`: it runs without this package, on any number of studies.

The program takes `images` (N, 20, H, W) float32, 0 to 1, zeros in the channels after a study's last image, and
returns `probabilities` (N, L). A label that no study ever trained is NaN, so that nobody takes it for an answer.
Decision 0029 says why probabilities and not logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import CxrHvdError
from cxr_hvd.study.layout import MAX_IMAGES

EXAMPLE_STUDIES = 2
"""A dimension that is 1 in the example would be 1 for ever."""


class ProbabilityNetwork(nn.Module):
    """A trained network that answers with probabilities, and with NaN for labels that were never trained.

    Args:
        network: whose model returns logits.
    """

    def __init__(self, network: TrainedNetwork) -> None:
        super().__init__()
        self.network = network.model
        is_trained_L = [network.is_trained(label) for label in network.label_names]
        self.is_trained: Tensor
        self.register_buffer("is_trained", torch.tensor(is_trained_L))

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (N, L) of images (N, 20, H, W)."""
        return torch.where(self.is_trained, torch.sigmoid(self.network(images)), torch.nan)


def build_program(network: TrainedNetwork) -> ExportedProgram:
    """Trace a network for any number of studies of 20 channels.

    Paths of this machine and the example's values are left out of it.

    Raises:
        CxrHvdError: the network does something that `torch.export` cannot follow.
    """
    size = network.image_size
    example = torch.zeros(EXAMPLE_STUDIES, MAX_IMAGES, size, size)
    try:
        with torch.no_grad():
            program = torch.export.export(
                ProbabilityNetwork(network).eval(), (example,), dynamic_shapes={"images": {0: Dim.DYNAMIC}}
            )
    except Exception as error:  # any network, any error
        raise CxrHvdError(
            f"{network.source}: expected a network that torch.export can trace, found {network.record.name}, on "
            f"which it raised {type(error).__name__}; export it without programs (--weights-only)"
        ) from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    program._example_inputs = None
    return program


def write_program(path: Path, program: ExportedProgram) -> None:
    """Write a program as a `.pt2` file."""
    torch.export.save(program, path)


@contextmanager
def open_program(path: Path) -> Iterator[nn.Module]:
    """Load a program as whoever receives it does; it takes images and returns probabilities."""
    with torch.inference_mode():
        yield torch.export.load(path).module()
