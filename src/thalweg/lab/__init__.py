"""The lab: tuned comparisons of optimizers on real data. Needs ``pip install 'thalweg[lab]'``."""
