"""Metrics: pure functions on arrays, maps and features, one module per kind of result.

``images`` (generated against real sets), ``pairs`` (virtual staining), ``stain`` (DAB), ``seams``,
``segmentation``, ``expression``, ``probabilistic``, ``intervals``. Import from the module.
"""
