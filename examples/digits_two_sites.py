"""Partial averaging on any data: two sites learn scikit-learn's digits, in ten seconds and without an X-ray.

    horovodrun -np 2 python examples/digits_two_sites.py

North has mostly the digits 0 to 4, south mostly 5 to 9. South's scanner makes its images bright and pale.
Each site wants to read all ten digits as its own scanner shows them. Three ways are compared: alone; all weights
averaged after each step; all but the normalization layers, which adapt to the scanner (FedBN, Li et al., 2021).
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import cxr_hvd

NUM_STEPS, NUM_TRAIN, BATCH_SIZE = 300, 1000, 32
WAYS = {"alone": "all", "all weights averaged": "none", "all but the norms averaged": "norms"}

with cxr_hvd.join(sites=["north", "south"]) as job:
    torch.manual_seed(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16  # (1797, 64), 0 to 1
    labels = torch.tensor(digits.target)
    is_at_north = (labels < 5) ^ (torch.rand(len(labels)) < 0.05)  # 5% of the digits are at the other site
    if job.site == "south":
        images = 0.6 + 0.3 * images
    is_mine = is_at_north if job.site == "north" else ~is_at_north
    is_train = torch.arange(len(labels)) < NUM_TRAIN
    mine = TensorDataset(images[is_mine & is_train], labels[is_mine & is_train])
    loader = DataLoader(mine, BATCH_SIZE, shuffle=True, drop_last=True)

    for way, private in WAYS.items():
        torch.manual_seed(2)  # the same first weights at both sites
        model = nn.Sequential(
            *(nn.BatchNorm1d(64), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()),
            *(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        averager = cxr_hvd.PartialAverager(model, optimizer, job, private=private)
        for batch, targets in cxr_hvd.cycle(loader, NUM_STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(model(batch), targets).backward()
            optimizer.step()
            averager.average()
        averager.close()

        predicted = model.eval()(images[~is_train]).argmax(dim=1)
        accuracy = (predicted == labels[~is_train]).float().mean().item()
        print(f"{job.site}, {way}: {accuracy:.1%} of all ten digits", flush=True)

    averager.save(f"digits-{job.site}.safetensors")
