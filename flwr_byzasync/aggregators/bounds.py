"""Robustness constants c_λ shared by several rules, proved and published."""

import math


def meta_bound(lam: float, base: float) -> float:
    """Return ``4 λ (√(λ c) + √(1 − 2λ))²/(1 − λ)²``, the constant over any base with constant c.

    A stated c below λ/(1 − 2λ), which no rule can have, is replaced by that.
    """
    least = max(base, lam / (1.0 - 2.0 * lam))
    root = math.sqrt(lam * least) + math.sqrt(1.0 - 2.0 * lam)
    return 4.0 * lam * (root / (1.0 - lam)) ** 2


def trimmed_bound(lam: float) -> float:
    """Return ``4 λ/((1 − λ)(1 − 2λ))``, the constant around a median, for λ in [0, 1/2)."""
    return 4.0 * lam / ((1.0 - lam) * (1.0 - 2.0 * lam))


def published_meta_bound(lam: float, base: float) -> float:
    """Return ``60 λ (1 + c)``, the published constant over a base with constant c."""
    return 60.0 * lam * (1.0 + base)


def sharp_bound(lam: float) -> float:
    """Return ``1/(1 − 2λ)``, the constant of w-CWMed and w-GM, for λ in [0, 1/2)."""
    return 1.0 / (1.0 - 2.0 * lam)


def published_median_bound(lam: float) -> float:
    """Return ``(1 + λ/(1 − 2λ))²``, the published constant of both medians up to a factor."""
    return (1.0 + lam / (1.0 - 2.0 * lam)) ** 2


def floor_bound(lam: float) -> float:
    """Return ``λ/(1 − 2λ)``, the constant of the trimmed mean and a lower bound for every rule."""
    return lam / (1.0 - 2.0 * lam)


def published_trimmed_bound(lam: float) -> float:
    """Return ``6 λ/(1 − 2λ) (1 + λ/(1 − 2λ))``, the published constant for f = λn of n rows."""
    return 6.0 * floor_bound(lam) * (1.0 + floor_bound(lam))
