"""`trainer.compile`: the layers of a model through torch.compile."""

from torch import nn

from amd_lightning.policies import Policy


def compile_layers(policy: Policy, backend: str = "inductor") -> None:
    """Compile every layer of the policy's stacks in place: names of weights stay, and layers that are alike
    share what is compiled. Lengths change from batch to batch, so shapes are dynamic."""
    for stack in outermost_lists(policy.model):
        for layer in stack:
            layer.compile(dynamic=True, backend=backend)
    policy.compiled = True


def outermost_lists(model: nn.Module) -> list[nn.ModuleList]:
    """The stacks of layers; not the lists within a layer (T5's)."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return list(found.values())
