"""What tests of the page of a run share: a run, models, and what a page holds."""

import json
import re

import torch
from commands import SMALL_RUN
from torch import nn

from lae_fast import VAE, train

ARGUMENTS = [*SMALL_RUN, "--nz", "3", "--batch-size", "100", "--epochs", "2", "--log-every", "2"]


def trained(folder):
    """A run on the digits in this folder, which leaves its page."""
    assert train.main([*ARGUMENTS, "--output-dir", str(folder)]) == 0
    return folder


def read(folder):
    """A page, and the data within."""
    text = (folder / "view.html").read_text(encoding="utf-8")
    return text, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def rounded(model):
    """The model with the weights that the page has."""
    with torch.no_grad():
        for p in (*model.parameters(), *model.buffers()):
            p.copy_(p.half() if p.is_floating_point() else p)
    return model


def own_model(decoder, likelihood, shape, nz=3):
    """A VAE around a decoder, in eval mode."""
    nx = torch.Size(shape).numel()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(nx, 4))
    return VAE(encoder, decoder, likelihood, nx=nx, nz=nz, d=4).eval()
