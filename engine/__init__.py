"""The science of a fleet: clusters, drift, surrogates, search and compression.

A library that needs no SSH, terminal, database or settings file. What it needs from a device
comes in as a :class:`engine.latency.Measure`; what it has to say goes out as
:mod:`engine.events`.
"""

import os

# ONNX Runtime reads it when it is loaded: it would keep a database and report to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
