"""Train a network of timm at two sites; its gradients travel in 16 bits while backward still runs.

    horovodrun -np 2 python examples/timm_two_sites.py a.h5 b.h5

Needs timm. Averaging gradients is what DistributedDataParallel does: the sites send while they compute. Here the
first and the last blocks never leave their site.
"""

import sys
from pathlib import Path

import timm
import torch
from timm.optim import param_groups_weight_decay
from torch.nn import functional
from torch.utils.data import DataLoader

import cxr_hvd

NUM_STEPS, BATCH_SIZE = 20, 4
files = {Path(path).stem: path for path in sys.argv[1:]}

with cxr_hvd.join(sites=list(files)) as job:
    studies = cxr_hvd.StudyDataset(files[job.site], "train")
    loader = DataLoader(studies, BATCH_SIZE, shuffle=True, drop_last=True)
    num_channels, num_labels = studies[0][0].shape[0], studies[0][1].shape[0]

    torch.manual_seed(1)
    model = timm.create_model("convnext_atto", in_chans=num_channels, num_classes=num_labels).to(job.device)
    groups = param_groups_weight_decay(model, weight_decay=0.05)  # groups of parameters are fine
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    averager = cxr_hvd.PartialAverager(
        model,
        optimizer,
        job,
        private="ends",  # the first and the last stage, with stem and head: experiment D of the study
        exchange="gradients",
        wire="bfloat16",  # half the bytes; what rounding takes is sent with the next step
    )
    if job.is_leader:
        print(averager.plan)  # the blocks are the stages that timm itself names

    model.train()
    for step, batch in enumerate(cxr_hvd.cycle(loader, NUM_STEPS), 1):
        images, targets, known = (tensor.to(job.device) for tensor in batch)
        loss = functional.binary_cross_entropy_with_logits(model(images), targets, weight=known.float())
        optimizer.zero_grad()
        averager.begin()  # from here on a block's gradient is sent as soon as backward has made it
        loss.backward()
        averager.average()  # wait for the last gradients, then take the step
        optimizer.step()
        if step % 10 == 0:
            print(f"{job.site}: step {step}/{NUM_STEPS}, loss {loss.item():.4f}", flush=True)

    averager.close()
    averager.save(f"timm-{job.site}.safetensors")
