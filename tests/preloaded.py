"""What the server of forks has imported (:mod:`one_server`)."""

import gc
import logging
import warnings

import thalweg.lab.search.preloaded  # noqa: F401

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what others load on the way, in many lines
    logging.disable()
    import lightning.pytorch  # noqa: F401
    import torchao  # noqa: F401
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.mixtral.modeling_mixtral  # noqa: F401

    logging.disable(logging.NOTSET)

gc.collect()
gc.freeze()  # else a collection in each fork goes over half a million objects, and copies their memory
