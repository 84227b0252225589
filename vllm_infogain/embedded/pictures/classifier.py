"""A small classifier of scenes, whose features and classes FID and Inception score are computed of.

Inception's weights are no part of the package, and would see 32 x 32 drawings as noise. So figures by this classifier
compare samplers with each other, on these scenes only.
"""

from itertools import pairwise
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vllm_infogain.embedded.pictures.scenes import COLOURS, SHAPES, drawings, requirements, to_network
from vllm_infogain.images.geneval import CATEGORIES

FEATURES = 32
CLASSES = [(colour, shape) for colour in COLOURS for shape in SHAPES]
PICTURES, EPOCHS, ROWS, RATE = 4000, 6, 64, 3e-3


class Classifier(nn.Module):
    """Pictures [n, 3, side, side], -1 to 1 -> features [n, FEATURES] and logits [n, classes]: is one in it?"""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 16, 32, FEATURES)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(sizes)
        )
        self.head = nn.Linear(FEATURES, len(CLASSES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = pictures
        for layer in self.layers:
            x = F.relu(layer(x))
        features = x.mean((2, 3))
        return features, self.head(features)


def train_classifier(seed: int = 0) -> Classifier:
    """About half a minute on a CPU's core. The same seed gives the same classifier on the same machine."""
    rng = Random(f"classifier {seed}")
    torch.manual_seed(seed)
    chosen = [rng.choice(requirements("train")[CATEGORIES[i % len(CATEGORIES)]]) for i in range(PICTURES)]
    shown = to_network(list(drawings(chosen, seed)))
    # A prompt without colours leaves them to the drawing, so its classes are unknown: any colour of the shape.
    wanted = torch.stack([_targets(requirement) for requirement in chosen])
    model = Classifier()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(PICTURES).split(ROWS):
            _, logits = model(shown[rows])
            known = wanted[rows] >= 0
            loss = F.binary_cross_entropy_with_logits(logits[known], wanted[rows][known])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def _targets(requirement: dict) -> Tensor:
    """[classes]: 1 is in the picture, 0 is not, -1 may be."""
    said = torch.zeros(len(CLASSES))
    for include in requirement["include"]:
        for index, (colour, shape) in enumerate(CLASSES):
            if shape == include["class"] and include.get("color", colour) == colour:
                said[index] = 1.0 if "color" in include else -1.0
    return said


@torch.no_grad()
def features(model: Classifier, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, FEATURES] and class probabilities [n, classes], which sum to 1, of uint8 [n, side, side, 3]."""
    out = [model(to_network(list(pictures[first : first + 500]))) for first in range(0, len(pictures), 500)]
    values, logits = (torch.cat(parts) for parts in zip(*out, strict=True))
    return values.double().numpy(), logits.softmax(-1).double().numpy()


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """FID (arXiv 1706.08500) of two sets of features [n, d]: of the Gaussians with their means and covariances."""
    means = one.mean(0) - other.mean(0)
    first, second = (np.cov(values, rowvar=False) for values in (one, other))
    # tr sqrt(AB) is the sum of the roots of AB's eigenvalues, which are not negative.
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0)).sum()
    return float(means @ means + np.trace(first) + np.trace(second) - 2 * roots)


def inception_score(probabilities: np.ndarray) -> float:
    """IS (arXiv 1606.03498) of class probabilities [n, classes]: exp of the mean divergence from their mean."""
    p = probabilities.clip(min=1e-12)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(-1).mean()))
