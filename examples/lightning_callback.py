"""Partial averaging in a Lightning Trainer, by one callback; the argument is `weights` or `gradients`.

    horovodrun -np 2 python examples/lightning_callback.py weights

`plugins` keeps Lightning out of the launcher's job. All sites need the same `max_steps`: steps of the optimizer.
"""

import sys

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torchvision.models import mobilenet_v3_small

import cxr_hvd


class PartialAveraging(Callback):
    def __init__(self, job, **options):  # the options of cxr_hvd.PartialAverager
        self.job, self.options = job, options

    def on_train_start(self, trainer, module):
        self.averager = cxr_hvd.PartialAverager(module, trainer.optimizers[0], self.job, **self.options)
        self.num_steps = trainer.global_step

    def on_before_optimizer_step(self, *_):  # between backward and step, before gradients are clipped
        if self.averager.plan.exchange == "gradients":
            self.averager.average()

    def on_train_batch_end(self, trainer, *_):  # with accumulate_grad_batches, not every batch is a step
        is_step, self.num_steps = trainer.global_step > self.num_steps, trainer.global_step
        if is_step and self.averager.plan.exchange == "weights":
            self.averager.average()

    def on_train_end(self, *_):
        self.averager.close()


class Network(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = mobilenet_v3_small(num_classes=2)

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


with cxr_hvd.join(sites=["north", "south"]) as job:
    torch.manual_seed(1)
    module, averaging = Network(), PartialAveraging(job, private=["head"], exchange=sys.argv[1])
    labels = torch.randint(2, (72 if job.site == "north" else 40,))  # of bright squares and dark ones
    data = [(torch.rand(3, 32, 32) + label, label) for label in labels]
    options = {"accelerator": "cpu", "devices": 1, "accumulate_grad_batches": 2, "logger": False}
    trainer = Trainer(**options, max_steps=20, plugins=[LightningEnvironment()], callbacks=[averaging])
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))
    averaging.averager.save(f"{job.site}.safetensors")
