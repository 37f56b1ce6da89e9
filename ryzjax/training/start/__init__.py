"""What a run starts from: base weights, float32 masters, adapters, or a new model.

Code here loads or draws weights and places them on the devices. It neither trains nor writes files.
"""
