"""Win rates out of preferences between 0 and 1, one per pair, with their confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.96  # of a 95 % interval
# Keep the weights finite: of the model, where one side wins every pair; of the length, where it explains every verdict.
RIDGE = np.array([1e-3, 1.0])
STEPS = 200


@dataclass(frozen=True)
class Rate:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def win_rate(preferences: Sequence[float]) -> Rate:
    """The mean, a tie as half; its interval from the pairs' standard error."""
    values = np.asarray(preferences, dtype=float)
    error = Z * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.5
    mean, error = float(values.mean()), float(error)
    return Rate(mean, max(0.0, mean - error), min(1.0, mean + error))


def length_controlled(preferences: Sequence[float], lengths: Sequence[float]) -> Rate:
    """What the win rate would be if both texts of every pair were equally long.

    As AlpacaEval 2: a logistic regression of the preference on the model and on tanh(difference of lengths / its
    standard deviation), and its prediction without the length's term. AlpacaEval's further term, a difficulty of each
    instruction that it fitted on many models, needs those models and is left out.

    Args:
        preferences: for ours, 0 to 1.
        lengths: ours less theirs, in characters.
    """
    values, differences = np.asarray(preferences, dtype=float), np.asarray(lengths, dtype=float)
    spread = differences.std()
    features = np.stack([np.ones_like(values), np.tanh(differences / spread) if spread else np.zeros_like(values)], 1)
    weights = np.zeros(2)
    for _ in range(STEPS):  # Newton's method on a convex loss, with shorter steps where a whole one overshoots
        expected = sigmoid(features @ weights)
        gradient = features.T @ (expected - values) + RIDGE * weights
        curvature = (features.T * (expected * (1 - expected))) @ features + np.diag(RIDGE)
        step = np.linalg.solve(curvature, gradient)
        while _loss(weights - step, features, values) > _loss(weights, features, values) and np.abs(step).max() > 1e-10:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() <= 1e-10:
            break
    # The weights' covariance that holds for preferences that are no coin flips: the sandwich.
    residuals = features * (values - sigmoid(features @ weights))[:, None]
    inverse = np.linalg.inv(curvature)
    error = Z * float(np.sqrt((inverse @ residuals.T @ residuals @ inverse)[0, 0]))
    return Rate(*(float(sigmoid(weights[0] + shift)) for shift in (0.0, -error, error)))


def _loss(weights: np.ndarray, features: np.ndarray, values: np.ndarray) -> float:
    scores = features @ weights
    return float((np.logaddexp(0, scores) - values * scores).sum() + (RIDGE * weights**2).sum() / 2)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
