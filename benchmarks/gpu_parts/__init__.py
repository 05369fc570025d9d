"""The parts of ``gpu.py``, one a file. Each has ``run(report, shapes)``, which measures every shape of a model that it has sizes for."""
