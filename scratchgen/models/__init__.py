"""Generative models, one family a file: the networks, the losses, one training step, generation.

`gan` the adversarial game, with `adversarial` (what the players lower) and `adversaries` (their networks) · `pix2pix` the same
between pictures · `text2image` the same, told captions · `vae` the evidence lower bound, with `likelihoods` (of pixels) and
`coders` (its networks) · `vqvae` codes that are whole numbers · `priors` which codes are likely, `latent` ways between codes ·
`flow` a field that moves noise, and diffusion · `gpt` the chain rule of probability. `family` says what a model is, and each
file ends with what its family tells of itself; `pictures` holds what the families that make pictures share.
Nothing here knows of files, progress bars or the command line.
"""

from scratchgen.models.flow import Flow, FlowConfig
from scratchgen.models.gan import GAN, GANConfig
from scratchgen.models.gpt import GPT, GPTConfig
from scratchgen.models.pix2pix import Pix2Pix, Pix2PixConfig
from scratchgen.models.priors import Prior, PriorConfig
from scratchgen.models.text2image import TextGAN, TextGANConfig
from scratchgen.models.vae import VAE, VAEConfig
from scratchgen.models.vqvae import VQVAE, VQVAEConfig

__all__ = [
    "Flow",
    "FlowConfig",
    "GAN",
    "GANConfig",
    "GPT",
    "GPTConfig",
    "Pix2Pix",
    "Pix2PixConfig",
    "Prior",
    "PriorConfig",
    "TextGAN",
    "TextGANConfig",
    "VAE",
    "VAEConfig",
    "VQVAE",
    "VQVAEConfig",
]
