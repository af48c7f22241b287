"""What the server imports that workers are forked from (:mod:`thalweg.lab.processes`)."""

import gc

import scipy.stats  # noqa: F401 (which draws the trials)
import torch

import thalweg.lab.search.work  # noqa: F401

torch.optim.SGD([torch.zeros(1)])  # with the first optimizer torch imports its compiler: a second
gc.collect()
gc.freeze()  # collections in the workers leave out what they share, and so do not copy its memory
