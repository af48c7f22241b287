"""The slides' geometric claims as measurements of ``thalweg reproduce``: each module has ``run`` and ``page``.

Recipes name these modules; nothing imports them. What is measured is small enough that all seeds of a setting train at
once, stacked (:mod:`thalweg.experiments.networks`), and a finished setting is a record that is never computed again
(:mod:`thalweg.experiments.work`).
"""
