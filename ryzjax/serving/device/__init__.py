"""The device side of the engine: compiled programs, the shapes they are compiled for, and the arrays they own."""
