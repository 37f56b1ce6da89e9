"""Quantizing a whole model: calibration, blocks one after the other, files, reports and merging."""
