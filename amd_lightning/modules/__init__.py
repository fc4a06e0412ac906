"""LightningModules: collect rollouts, update, log."""
