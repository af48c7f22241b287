"""What is measured rather than compared: each module lists its settings (``wanted``), and measures one (``measure``).

Recipes name these modules; nothing imports them. What is measured is small enough that all seeds of a setting train at
once, stacked (:mod:`~thalweg.studies.measurements.networks`), and a finished setting is a record that is never computed
again (:mod:`~thalweg.studies.measurements.work`).
"""
