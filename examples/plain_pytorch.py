"""Train your own network with your own loop at two sites, and share only its middle.

    horovodrun -np 2 python examples/plain_pytorch.py a.h5 b.h5

Each argument is one site's study file, in the order of the ranks. With one file, start it by python alone.
Lines that cxr_hvd needs have a comment that begins with a number.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.models import resnet18

import cxr_hvd

NUM_STEPS, BATCH_SIZE = 20, 4
files = {Path(path).stem: path for path in sys.argv[1:]}

# 1. Join the job that the launcher started. Sites are given in the order of the ranks. Each rank opens only
#    the file of its own site, so the files may lie on two machines.
with cxr_hvd.join(sites=list(files)) as job:
    # 2. Each item is one study: images (20, H, W) from 0 to 1, targets (L,), which of these are known (L,).
    studies = cxr_hvd.StudyDataset(files[job.site], "train")
    loader = DataLoader(studies, BATCH_SIZE, shuffle=True, drop_last=True)
    num_channels, num_labels = studies[0][0].shape[0], studies[0][1].shape[0]

    # 3. Shared weights must be the same on all ranks before the first step: the same seed does it.
    torch.manual_seed(1)
    model = resnet18(num_classes=num_labels)
    model.conv1 = nn.Conv2d(num_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    model.to(job.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    # 4. Decide what stays at the site. Everything else is averaged; a preset such as "norms" would do as well.
    averager = cxr_hvd.PartialAverager(model, optimizer, job, private=["stem", "head"])
    if job.is_leader:
        print(averager.plan)  # what will leave a site: read it before you train

    model.train()
    # 5. All sites take the same number of steps, however many studies each has.
    for step, batch in enumerate(cxr_hvd.cycle(loader, NUM_STEPS), 1):
        images, targets, known = (tensor.to(job.device) for tensor in batch)
        loss = functional.binary_cross_entropy_with_logits(model(images), targets, weight=known.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averager.average()  # 6. After the optimizer's step, on every rank: it waits for the other sites.
        if step % 10 == 0:
            print(f"{job.site}: step {step}/{NUM_STEPS}, loss {loss.item():.4f}", flush=True)

    averager.close()  # 7. The last average: all sites end with the same shared weights.
    averager.save(f"network-{job.site}.safetensors")  # this site's network: shared blocks and its private ones
