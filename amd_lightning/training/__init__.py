"""How a stage is trained with Lightning: fitting, watching, checkpoints, stopping, many devices."""
