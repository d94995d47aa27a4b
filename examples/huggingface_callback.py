"""Partial averaging in a Hugging Face Trainer, by one callback; the argument is `weights` or `gradients`.

    horovodrun -np 2 python examples/huggingface_callback.py weights

Each rank has a Trainer of its own: what tells accelerate that it is in a job is taken out of the environment. All
sites need the same `max_steps`. With several GPUs a machine, give each rank its own in CUDA_VISIBLE_DEVICES.
"""

import os
import sys

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

import cxr_hvd

SIGNS_OF_A_JOB = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE", "LOCAL_RANK")


class PartialAveraging(TrainerCallback):
    def __init__(self, job, **options):  # the options of cxr_hvd.PartialAverager
        self.job, self.options = job, options

    def on_train_begin(self, args, state, control, model, optimizer, **_):
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        self.averager = cxr_hvd.PartialAverager(model, optimizer, self.job, **self.options)

    def on_pre_optimizer_step(self, *_, **__):  # between backward and step, after gradients are clipped
        if self.averager.plan.exchange == "gradients":
            self.averager.average()

    def on_optimizer_step(self, *_, **__):  # once a step, also with gradient_accumulation_steps
        if self.averager.plan.exchange == "weights":
            self.averager.average()

    def on_train_end(self, *_, **__):
        self.averager.close()


with cxr_hvd.join(sites=["north", "south"]) as job:
    for name in SIGNS_OF_A_JOB:
        os.environ.pop(name, None)
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = ViTConfig(**sizes, image_size=16, patch_size=8, num_channels=1, num_labels=2)
    model = ViTForImageClassification(config)
    labels = torch.randint(2, (72 if job.site == "north" else 40,))  # of bright squares and dark ones
    data = [{"pixel_values": torch.rand(1, 16, 16) + label, "labels": label} for label in labels]
    averaging = PartialAveraging(job, private=["head"], exchange=sys.argv[1])
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "use_cpu": True}
    arguments = TrainingArguments(job.site, **options, max_steps=20, report_to="none", save_strategy="no")
    Trainer(model, arguments, train_dataset=data, callbacks=[averaging]).train()
    averaging.averager.save(f"{job.site}.safetensors")
