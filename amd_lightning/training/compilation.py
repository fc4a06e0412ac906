"""`torch.compile` for the forward passes of training; writing stays as it is.

What is compiled is each model's body in place (`nn.Module.compile`): parameters keep their names, in
checkpoints and in saved students. The head stays outside, since `Policy` hooks it anew at every forward.
"""

from torch import nn

from amd_lightning.policies import Policy


def compile_forward(policy: Policy, backend: str = "inductor") -> None:
    """Compile the policy's body, for any batch and length: shapes are dynamic from the first call on, since
    every batch of text has another length and would be compiled for itself.

    Args:
        backend: of `torch.compile`.
    """
    for body in bodies(policy):
        body.compile(backend=backend, dynamic=True)
    policy.compiled = True


def bodies(policy: Policy) -> list[nn.Module]:
    """The model without its head: encoder and decoder, or the one stack."""
    model = policy.model
    if model.config.is_encoder_decoder:
        return [model.get_encoder(), model.get_decoder()]
    return [model.base_model]
