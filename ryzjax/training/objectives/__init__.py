"""Objectives of training: next-token loss, DPO and ORPO, over cross-entropy in chunks."""
