"""Export a trained network: one folder that stands alone, written whole or not at all.

The folder is a MONAI bundle: weights and programs, their check, scripts, metadata and a model card. Owns which
files are in it. Private blocks are in it only if the caller says so; without them no program can run, and none is
written.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from cxr_hvd.deploy.card.card import NO_LICENCE, CardFacts, build_card
from cxr_hvd.deploy.card.pages import as_markdown, as_page
from cxr_hvd.deploy.card.run_facts import RunFacts
from cxr_hvd.deploy.combine import AVERAGED, ENSEMBLE
from cxr_hvd.deploy.export import bundle
from cxr_hvd.deploy.export.onnx_file import check_extra
from cxr_hvd.deploy.export.options import ExportOptions, check_folder
from cxr_hvd.deploy.export.programs import write_programs
from cxr_hvd.deploy.network_file import NETWORK_FILE, write_network
from cxr_hvd.deploy.program_check import ProgramCheck
from cxr_hvd.deploy.rendering import render
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import CxrHvdError, UsageError
from cxr_hvd.files import replaced_folder
from cxr_hvd.partial.blocks import assign_blocks

CARD, PAGE, LICENCE, USAGE = "README.md", "card.html", "LICENSE", "docs/README.md"


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        folder: where it is.
        checks: how far its programs are from PyTorch.
        left_out: private blocks that are not in it.
    """

    folder: Path
    checks: tuple[ProgramCheck, ...]
    left_out: tuple[str, ...]


def export_network(
    network: TrainedNetwork, facts: RunFacts, folder: Path, options: ExportOptions, overwrite: bool = False
) -> Exported:
    """Export a network into a folder.

    Args:
        facts: what its run says, for the card.

    Raises:
        CxrHvdError: something cannot be written, or a program is off by more than 0.0001; nothing is left then.
    """
    check_folder(folder, overwrite)
    record = network.record
    is_whole = options.with_private or not record.private_blocks
    if not is_whole and record.site in (AVERAGED, ENSEMBLE):
        raise UsageError(
            f"--site {record.site}: expected --with-private, since it is made of the private blocks of "
            f"{', '.join(record.sites)}"
        )
    has_programs = is_whole and options.has_programs
    if has_programs:
        check_extra()
    elif record.site == ENSEMBLE:
        raise UsageError(
            "--site ensemble --weights-only: an ensemble is a program alone; leave --weights-only out"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replaced_folder(folder) as unfinished:
            for name in ("configs", "models", "docs"):
                (unfinished / name).mkdir(mode=0o700)
            _write_weights(unfinished, network, is_whole)
            checks = write_programs(unfinished, network, facts, options.check) if has_programs else ()
            private_of = _private_of(network, is_whole)
            _write_texts(unfinished, network, facts, checks, private_of, options.licence)
            _close(unfinished, network, checks, private_of)
    except OSError as error:
        raise CxrHvdError(f"{folder}: cannot write the export ({error.strerror or error})") from error
    return Exported(folder, checks, () if is_whole else tuple(record.private_blocks))


def shared_tensors(network: TrainedNetwork) -> dict[str, Tensor]:
    """Return the tensors of a network that all sites share.

    A checkpoint says which these are. A network file does not: there a block is private as a whole where any
    tensor of it is.

    Raises:
        UsageError: there are none.
    """
    tensors, file = network.model.state_dict(), network.source / "shared.safetensors"
    if file.is_file():
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
    else:
        block_of, private = assign_blocks(network.model), network.record.private_blocks
        names = {name for name in tensors if block_of.get(name) not in private}
    shared = {name: tensor for name, tensor in tensors.items() if name in names}
    if not shared:
        raise UsageError(
            f"{network.source}: expected shared blocks, found none: all of this network is private to "
            f"{network.site}; export it --with-private if {network.site} agrees"
        )
    return shared


def _private_of(network: TrainedNetwork, is_whole: bool) -> tuple[str, ...]:
    """Return the sites whose private blocks an export holds."""
    record = network.record
    if not is_whole or not record.private_blocks:
        return ()
    return tuple(record.sites) if record.site in (AVERAGED, ENSEMBLE) else (record.site,)


def _write_weights(folder: Path, network: TrainedNetwork, is_whole: bool) -> None:
    if is_whole:
        if network.site != ENSEMBLE:
            write_network(folder / NETWORK_FILE, network)
        return
    # Thresholds belong to the private blocks, or to the site's data: they go where these go.
    record = network.record.model_copy(update={"thresholds": {}})
    without = TrainedNetwork(network.model, record, network.source)
    write_network(folder / NETWORK_FILE, without, shared_tensors(network))


def _write_texts(
    folder: Path,
    network: TrainedNetwork,
    facts: RunFacts,
    checks: tuple[ProgramCheck, ...],
    private_of: tuple[str, ...],
    licence: str | None,
) -> None:
    """Write scripts, licence and card."""
    if checks:
        scripts = bundle.render_scripts(network.record, facts.stored_size or bundle.STORED_SIZE)
        scripts[bundle.INFERENCE] = bundle.as_json(bundle.build_inference())
        for name, text in scripts.items():
            (folder / name).write_text(text, encoding="utf-8")
    (folder / LICENCE).write_text(f"Licence of this network: {licence or NO_LICENCE}\n", encoding="utf-8")
    (folder / USAGE).write_text(render("usage.md", has_programs=bool(checks)), encoding="utf-8")
    files = {name: text for name, text in _files(bool(private_of)).items() if _is_or_will_be(folder, name)}
    card_facts = CardFacts(network.record, facts, licence, private_of, checks, files)
    sections = build_card(card_facts)
    writers: Mapping[str, Callable[..., str]] = {CARD: as_markdown, PAGE: as_page}
    for name, write in writers.items():
        (folder / name).write_text(write(card_facts, sections), encoding="utf-8")


def _is_or_will_be(folder: Path, name: str) -> bool:
    return (folder / name).exists() or name in (CARD, PAGE, bundle.METADATA)


def _files(has_private: bool) -> dict[str, str]:
    """Return what the files of an export are, by their names."""
    return {
        NETWORK_FILE: "weights: " + ("shared and private blocks" if has_private else "shared blocks"),
        bundle.TORCH_PROGRAM: "program for PyTorch (torch.export)",
        bundle.ONNX_PROGRAM: "program for ONNX Runtime",
        "preprocess.py": "from image files to the program's input",
        "answers.py": "from a folder of studies to a table of answers",
        bundle.METADATA: "what the network is, what goes in and out, SHA-256 of each file",
        bundle.INFERENCE: "how MONAI runs it",
        USAGE: "how to use it",
        CARD: "this card",
        PAGE: "this card as a page",
        LICENCE: "licence",
    }


def _close(
    folder: Path, network: TrainedNetwork, checks: tuple[ProgramCheck, ...], private_of: tuple[str, ...]
) -> None:
    """Write the metadata, with the digests of all other files, and let only the owner read any of them."""
    for empty in [path for path in folder.iterdir() if path.is_dir() and not any(path.iterdir())]:
        if empty.name != "configs":
            empty.rmdir()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    record = network.record
    if record.private_blocks and not private_of:
        record = record.model_copy(update={"thresholds": {}})
    metadata = bundle.build_metadata(record, checks, digests, private_of)
    (folder / bundle.METADATA).write_text(bundle.as_json(metadata), encoding="utf-8")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
