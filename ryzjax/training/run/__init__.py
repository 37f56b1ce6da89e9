"""One training run: the loop, evaluations, checkpoints, logs, signals, and the export of the result.

Code here runs on the host around the compiled programs. What is compiled belongs to `step` and `programs`.
"""
