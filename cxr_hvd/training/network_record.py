"""What a trained network is, beside its tensors: which labels it can speak of, on which images, and whose it is.

A checkpoint's `state.json` holds it, and so does the metadata of every file of weights, so that a network can be
used without the config and the data of its run.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from cxr_hvd.comm.job import Job
from cxr_hvd.config.schema import Config, ExperimentName, config_digest
from cxr_hvd.config.sections import Model, Positive, SiteName
from cxr_hvd.data.studies import TrainingData
from cxr_hvd.partial.plan import Scope, SharingPlan
from cxr_hvd.partial.record import plan_record
from cxr_hvd.record import Finite, Name, Record, Step
from cxr_hvd.study.layout import Split

Names = Annotated[list[Name], Field(max_length=256)]
HEAD = "head"

METADATA_KEY = "network"
"""The one key of a safetensors file's metadata: its writer puts several in an order that differs each time."""

OF_ONE_SITE = {"site", "trained_labels", "pixels", "thresholds"}
"""What the shared weights do not say: their file is the same at all sites, byte by byte."""


class NetworkRecord(Record):
    """What a trained network is.

    Attributes:
        network_schema: of this record.
        experiment, site, sites: of which run and whose it is, and who trained together.
        label_names: its outputs, in order.
        known_labels: for each site the labels that its source says something of, in one training study at least.
        trained_labels: labels whose outputs were trained: known at a site that trained this network's head, or,
            where the head is frozen, to the network that it came from.
        pixels: the pixel pipeline of the site's study file.
        name, norm, image_size: section `model` of the config.
        blocks, private_blocks: the network's blocks, and those that stay at the site, in its order.
        config_sha256, plan_sha256: of what all sites have alike in the config, and of the sharing plan.
        pixel_pipelines: section of the config: whether images of any pixel pipeline may be judged.
        batch_size: studies of a batch where it is judged: scores are the same bit for bit in batches alike.
        step: steps that it was trained for.
        thresholds: from which probability on a label is present. Empty in a checkpoint, which is written before it
            is validated: there they stand in the site's `validation.jsonl`.
    """

    network_schema: Literal[1, 2] = 2
    experiment: ExperimentName
    site: SiteName
    sites: Annotated[list[SiteName], Field(max_length=1024)]
    label_names: Names
    known_labels: dict[SiteName, Names]
    trained_labels: Names
    pixels: Name
    name: Name
    norm: Literal["batch", "group"]
    image_size: Positive
    blocks: Annotated[list[Name], Field(max_length=4096)]
    private_blocks: Annotated[list[Name], Field(max_length=4096)]
    config_sha256: Name
    plan_sha256: Name
    pixel_pipelines: Literal["same", "any"] = "same"
    batch_size: Positive = 16
    step: Step = 0
    thresholds: dict[Name, Finite] = Field(default_factory=dict)

    @property
    def model(self) -> Model:
        """Section `model` of a config that builds this network."""
        return Model(name=self.name, norm=self.norm, image_size=self.image_size)

    def metadata(self, is_of_site: bool = True) -> dict[str, str]:
        """Return what a safetensors file of its weights says in its metadata.

        Args:
            is_of_site: whether the file is of one site; else what differs from site to site is left out.
        """
        return {METADATA_KEY: self.model_dump_json(exclude=set() if is_of_site else OF_ONE_SITE)}


def describe_network(
    config: Config, plan: SharingPlan, data: TrainingData, job: Job, trained_before: Sequence[str] = ()
) -> NetworkRecord:
    """Describe this rank's network. Collective: every rank. Blocking.

    Args:
        trained_before: labels that the head of the first weights had learnt: all that a frozen head knows.
    """
    known_labels = gather_known_labels(data, job)
    scopes = {planned.spec.block: set[Scope]() for planned in plan.tensors}
    for planned in plan.tensors:
        scopes[planned.spec.block].add(planned.scope)
    is_own_head = Scope.SHARED not in scopes.get(HEAD, {Scope.SHARED}) and not config.is_merged
    trainers = [job.site] if is_own_head else list(known_labels)
    label_names = data.studies.label_names
    trained = {label for site in trainers for label in known_labels[site]}
    if HEAD in scopes and not scopes[HEAD] & {Scope.SHARED, Scope.PRIVATE}:
        trained = set(trained_before)
    return NetworkRecord(
        experiment=config.experiment,
        site=job.site,
        sites=list(config.sites),
        label_names=list(label_names),
        known_labels=known_labels,
        trained_labels=[name for name in label_names if name in trained],
        pixels=data.own_file.header.pixels,
        name=config.model.name,
        norm=config.model.norm,
        image_size=config.model.image_size,
        blocks=list(scopes),
        private_blocks=[block for block, of_block in scopes.items() if Scope.PRIVATE in of_block],
        config_sha256=config_digest(config),
        plan_sha256=hashlib.sha256(
            json.dumps(plan_record(plan).model_dump(), sort_keys=True).encode()
        ).hexdigest(),
        pixel_pipelines=config.pixel_pipelines,
        batch_size=config.training.batch_size,
    )


def gather_known_labels(data: TrainingData, job: Job) -> dict[str, list[str]]:
    """Return for each site the labels that its training studies mention. Collective: every rank. Blocking."""
    label_names = data.studies.label_names
    # What the source says nothing of is not known, though `blank: zeros` trains on it.
    rows_of_file = [file.labels[file.indices(Split.TRAIN)] for file in data.files]
    is_mentioned = np.any([~np.isnan(labels_NL).all(axis=0) for labels_NL in rows_of_file], axis=0)
    known = torch.from_numpy(is_mentioned & data.studies.known.any(axis=0)).to(torch.int64)
    rows = job.allgather_numbers(known, "labels", _read_known)
    topology = job.topology
    return {
        site: [label for column, label in enumerate(label_names) if any(rows[rank][column] for rank in ranks)]
        for index, site in enumerate(topology.site_names)
        for ranks in [topology.ranks_at(index)]
    }


def _read_known(answer: list[float]) -> list[bool]:
    if any(number not in (0, 1) for number in answer):
        raise ValueError("expected 0 or 1 for each label")
    return [bool(number) for number in answer]
