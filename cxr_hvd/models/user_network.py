"""A network that a function of the user builds: `my_pkg.nets:build`.

The config names code, and brings none: the module must be installed at each site, or be in the folder in which
the command is started. Decision 0024 says what that means for trust.
"""

import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cxr_hvd.errors import ConfigError, nearest
from cxr_hvd.study.layout import MAX_IMAGES

Builder = Callable[..., Any]
NOT_THE_USERS = (str(Path(__file__).parent), *torch.__path__, "<")
"""Where files begin that say nothing of a user's mistake."""


def build_user_network(name: str, num_labels: int, image_size: int) -> nn.Module:
    """Call `function(num_channels=20, num_labels=..., image_size=...)` of `module:function`.

    Raises:
        ConfigError: there is no such function, it raised something, or it returned no `nn.Module`.
    """
    builder = load_builder(name)
    try:
        network = builder(num_channels=MAX_IMAGES, num_labels=num_labels, image_size=image_size)
    except Exception as error:
        raise ConfigError(
            f"model.name: {name}(num_channels={MAX_IMAGES}, num_labels={num_labels}, image_size={image_size}) "
            f"raised {describe(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"model.name: expected {name} to return a torch.nn.Module, found {type(network).__name__}"
        )
    return network


def load_builder(name: str) -> Builder:
    """Import the function of `module:function`, from Python's path or else from the current folder.

    Raises:
        ConfigError: there is no such module or function, or the module cannot be imported.
    """
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last: no file here stands before an installed module
    try:
        module = import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"model.name: found no module {error.name} for {name}, neither on Python's path nor in {here}: "
                "install it at each site, or start the command in its folder"
            ) from error
        raise ConfigError(f"model.name: importing {module_name} raised {describe(error)}") from error
    builder: Any = getattr(module, function_name, None)
    if not callable(builder):
        functions = [other for other, value in vars(module).items() if callable(value) and other[0] != "_"]
        raise ConfigError(
            f"model.name: {module_name} has no function {function_name}{nearest(function_name, functions)}"
        )
    return cast(Builder, builder)


def source_digest(name: str) -> str:
    """Return the SHA-256 of the file that the function of `module:function` is written in.

    Raises:
        ConfigError: there is no such function, or no such file.
    """
    try:
        path = inspect.getsourcefile(inspect.unwrap(load_builder(name)))
    except TypeError:
        path = None
    if path is None or not Path(path).is_file():
        raise ConfigError(f"model.name: expected {name} to be a function that is written in a file, found none")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def describe(error: Exception) -> str:
    """Return an error's kind and message, and the last line on its way that is not torch's or this folder's."""
    path = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in path if not frame.filename.startswith(NOT_THE_USERS)]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
