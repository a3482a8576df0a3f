"""Generative models, one family a file: the networks, the losses, one training step, generation.

`gan` the adversarial game · `vae` the evidence lower bound · `gpt` the chain rule of probability. A model is a Module
with `config` (a frozen dataclass), `optimizers()`, `training_step(batch, optimizers)`, a batch being arrays or tensors,
`evaluate(batches)` and `generate(...)`; it knows nothing of files, progress bars or the command line.
"""

from scratchgen.models.gan import GAN, GANConfig
from scratchgen.models.gpt import GPT, GPTConfig
from scratchgen.models.vae import VAE, VAEConfig

__all__ = ["GAN", "GANConfig", "GPT", "GPTConfig", "VAE", "VAEConfig"]
