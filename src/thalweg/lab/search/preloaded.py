"""What the server imports that workers are forked from (:mod:`thalweg.lab.processes`)."""

import scipy.stats  # noqa: F401 (which draws the trials)
import torch

import thalweg.lab.search.work  # noqa: F401

torch.optim.SGD([torch.zeros(1)])  # with the first optimizer torch imports its compiler: a second
