r"""A small convolutional classifier: it judges pictures that other models make, and its features are what scores compare.

    h_0 = x,   h_i = pool(relu(W_i ∗ h_{i−1} + b_i)),   f = relu(V h + c),   logits of head k = U_k f + d_k

Each stage halves the sides, until both are at most 8. A head is one question with its own classes: fashion-mnist has one
of ten, `heads=(10,)`; captioned shapes have one each for size, colour and form. `trained` fits it to pictures and labels:

    min E Σ_k −log softmax(logits_k)[y_k]                                        by AdamW, along a cosine

A tenth of the pictures is kept from it, which tell how often it is right. It is trained on what a model learns from too, never
on what is held out to score that model. Its features are comparable only with those of the very same classifier, hence
of the same `VERSION`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from scratchgen import functional as F
from scratchgen import nn, optim, random
from scratchgen.data import batches
from scratchgen.grad_mode import no_grad
from scratchgen.models.family import Arrays, Keep, anew
from scratchgen.tensors import Tensor

VERSION = 1  # of the features: to be raised with any change to what is below, since scores then mean something else


@dataclass(frozen=True)
class ClassifierConfig:
    shape: tuple[int, int, int] = (1, 8, 8)  # of a picture: channels, height, width
    heads: tuple[int, ...] = (10,)  # how many classes each question has
    width: int = 16  # channels of the first convolution; those after it have twice as many
    features: int = 128  # length of f
    lr: float = 2e-3
    weight_decay: float = 1e-2
    batch_size: int = 64
    rounds: int = 30  # how often each picture is seen, but
    most: int = 240_000  # no more pictures than these are seen; of more than 32 × 32 pixels, fewer, as they are larger
    seed: int = 0


class Classifier(nn.Module):
    """The network, and how often each head was right on pictures kept from its training (`accuracy`; NaN before that)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        if not config.heads or min(config.heads) < 2:
            raise ValueError(f"Classifier: expected heads of at least 2 classes each, got {config.heads}")
        channels, *sides = config.shape
        stages, width = [], config.width
        while not stages or max(sides) > 8:
            window = tuple(min(2, side) for side in sides)  # a side of 1 stays as it is
            stages += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(window)]
            channels, width, sides = width, 2 * config.width, [side // n for side, n in zip(sides, window, strict=True)]
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels * math.prod(sides), config.features)
        self.heads = nn.ModuleList(nn.Linear(config.features, classes) for classes in config.heads)
        self.register_buffer("accuracy", Tensor(np.full(len(config.heads), np.nan)))

    def features(self, x: Tensor) -> Tensor:
        """What the heads read, after the last ReLU.     (B, C, H, W) in [0, 1] → (B, features)"""
        return F.relu(self.fc(self.stages(x).flatten(1)))

    def logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """One array for each head.     (B, C, H, W) in [0, 1] → (B, classes), …"""
        f = self.features(x)
        return tuple(head(f) for head in self.heads)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.logits(x)

    @no_grad()
    def read(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features of pictures, and the likeliest class by each head.     (N, C, H, W) → (N, features), (N, heads)

        Raises ValueError for pictures of another shape.
        """
        if x.shape[1:] != self.config.shape:
            raise ValueError(f"Classifier: expected pictures of shape {self.config.shape}, got {x.shape[1:]}")
        features, labels = [np.zeros((0, self.config.features), np.float32)], [np.zeros((0, len(self.heads)), np.int64)]
        for i in range(0, len(x), 256):
            f = self.features(Tensor(np.asarray(x[i : i + 256], np.float32)))
            features.append(f.data)
            labels.append(np.stack([head(f).data.argmax(1) for head in self.heads], 1))
        return np.concatenate(features), np.concatenate(labels)


def trained(config: ClassifierConfig, x: np.ndarray, y: np.ndarray, keep: Keep = anew) -> Classifier:
    """A classifier of these pictures, in evaluation mode: the one that `keep` has of them, or else a new one.

    x: (N, C, H, W) in [0, 1], y: integers (N,) or (N, heads), N ≥ 10.  The same arguments, threads and machine give the
    same bits, and the library's generator stays as it was. The name under which it is kept is made of all it follows from.
    Raises ValueError for other shapes, and labels outside the heads' classes.
    """
    y = y.reshape(len(y), -1)
    if x.shape[1:] != config.shape or y.shape != (len(x), len(config.heads)) or len(x) < 10:
        expected = f"at least 10 pictures of {config.shape} with labels (N, {len(config.heads)})"
        raise ValueError(f"trained: expected {expected}, got {x.shape} with {y.shape}")
    if y.dtype.kind not in "iu" or (y < 0).any() or (y >= config.heads).any():
        raise ValueError(f"trained: expected labels from 0 to below {config.heads}, got {y.dtype} up to {y.max(0)}")
    with random.fork_rng():
        random.manual_seed(config.seed)
        classifier = Classifier(config)
        sizes = [(name, tensor.shape) for name, tensor in classifier.state_dict().items()]
        digest = hashlib.sha256(repr((VERSION, config, sizes, x.shape)).encode())
        for array in (x, y.astype(np.int64)):
            digest.update(np.ascontiguousarray(array).data)

        def make() -> Arrays:
            _fit(classifier, x, y)
            return {name: tensor.numpy() for name, tensor in classifier.state_dict().items()}

        classifier.load_state_dict(keep(f"classifier-{VERSION}-{digest.hexdigest()[:32]}", make))
    return classifier.eval()


def _fit(classifier: Classifier, x: np.ndarray, y: np.ndarray) -> None:
    """Train a fresh classifier on nine tenths of the pictures, and measure how often it is right on the others."""
    c = classifier.config
    order = np.random.default_rng(c.seed).permutation(len(x))
    kept, seen = np.sort(order[: len(x) // 10]), np.sort(order[len(x) // 10 :])
    size = min(c.batch_size, len(seen))
    most = min(c.most, max(10_000, c.most * 32 * 32 / math.prod(c.shape[1:])))
    steps = math.ceil(min(c.rounds * len(seen), most) / size)
    optimizer = optim.AdamW(classifier.parameters(), lr=c.lr, weight_decay=c.weight_decay)
    for step, (rows, _) in zip(range(steps), batches(seen, size, seed=c.seed), strict=False):
        optimizer.param_groups[0]["lr"] = c.lr * optim.warmup_cosine(step, warmup=steps // 10, steps=steps, final=0.0)
        loss = sum(F.cross_entropy(logits, y[rows, k]) for k, logits in enumerate(classifier.logits(Tensor(x[rows]))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with no_grad():
        classifier.accuracy.copy_(Tensor((classifier.read(x[kept])[1] == y[kept]).mean(0)))
