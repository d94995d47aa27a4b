"""A trained network as an ONNX file, made of its `torch.export` program, and run by ONNX Runtime.

Inputs and outputs are those of `torch_program`. Needs the extra `export`; names of modules and lines of code that
the exporter notes beside each operation are left out.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.errors import CxrHvdError, UsageError

INPUT, OUTPUT, STUDIES = "images", "probabilities", "num_studies"
OPSET = 20
NEEDED = ("onnx", "onnxruntime", "onnxscript")


def check_extra() -> None:
    """Raise where a package that ONNX needs is missing.

    Raises:
        UsageError: it names them, and the command that installs them.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"expected the packages that ONNX needs, found no {', '.join(missing)}: pip install "
            "'cxr_hvd[export]', or leave programs out with --weights-only"
        )


def write_onnx(path: Path, program: Any) -> None:
    """Write a `torch.export` program as an ONNX file.

    Raises:
        CxrHvdError: ONNX has no operator for something that the network does.
    """
    import onnx
    import torch

    try:
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        model = exported.model_proto if exported is not None else None
    except Exception as error:  # any network, any error
        raise CxrHvdError(
            f"{path.name}: ONNX could not take over what the network does ({type(error).__name__}); export it "
            "without programs (--weights-only)"
        ) from error
    assert model is not None
    _clean(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def open_onnx(path: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Load an ONNX file on the CPU; return a function from images (N, 20, H, W) to probabilities (N, L)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(session.run([OUTPUT], {INPUT: images_NCHW})[0], np.float32)

    return run


def _clean(model: Any) -> None:
    """Name the free dimension, and drop what the exporter notes of the machine and the code."""
    graph = model.graph
    [free] = {dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim if dim.dim_param}
    for part in (*graph.input, *graph.output, *graph.value_info):
        for dim in part.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = STUDIES if dim.dim_param == free else dim.dim_param
    for noted in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        noted.ClearField("doc_string")
        noted.ClearField("metadata_props")
