"""The hot loops: functions of arrays, which know nothing of tensors or gradients. This file is the only way in.

`reference.py` says what each kernel means.
"""

from kernels.reference import (
    adamw,
    attention,
    attention_backward,
    conv,
    conv_input_grad,
    conv_weight_grad,
    cross_entropy,
    cross_entropy_backward,
    einsum,
    embedding,
    erf,
    gelu,
    gelu_backward,
    layer_norm,
    layer_norm_backward,
    log_softmax,
    matmul,
    scatter_add,
    softmax,
)

__all__ = [
    "adamw",
    "attention",
    "attention_backward",
    "conv",
    "conv_input_grad",
    "conv_weight_grad",
    "cross_entropy",
    "cross_entropy_backward",
    "einsum",
    "embedding",
    "erf",
    "gelu",
    "gelu_backward",
    "layer_norm",
    "layer_norm_backward",
    "log_softmax",
    "matmul",
    "scatter_add",
    "softmax",
]
