"""Local structure order parameters: how closely the neighbours of a site form a motif.

Source: Zimmermann & Jain 2020, RSC Adv. 10, 6063, with the constants of pymatgen. This is own code
because pymatgen's `LocalStructOrderParams` loops over the triples of neighbours of one site and
motif in Python; here all sites of one coordination number are one batch of arrays, many times as
fast. The tests compare both.

For each ordered pair (j, k) of n neighbours, neighbour j is put at the north pole and k on the
prime meridian. Let theta_k be the polar angle of k, and theta_m and phi_m the angles of the other
neighbours m. Every motif has a function of theta_k, one of (theta_m, phi_m), and often one for
neighbours near the south pole. The mean over the terms that apply is the score of (j, k), and the
order parameter is the highest score (Peters 2009, J. Chem. Phys. 131, 244103).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import eval_legendre

Array = NDArray[np.float64]
Parameters = Mapping[Any, float]

_COLLINEAR = 1e-12  # length of the component of a unit vector perpendicular to another
_IN_PLANE = {"T", "tri_pyr", "sq_pyr", "pent_pyr", "hex_pyr"}
_WITH_SOUTH_POLE = {
    "sq_plan_max", "see_saw_rect", "tri_bipyr", "pent_bipyr", "hex_bipyr", "oct_max",
    "hex_plan_max",
}  # fmt: skip


@dataclass(frozen=True)
class Angles:
    """Angles between the n neighbours of each of S sites.

    Attributes:
        cosine: (S, n, n), cosines between the directions of neighbours.
        theta: (S, n, n), radians; [s, j, k] is the polar angle of k where j is the north pole.
        phi: (S, n, n, n), radians; [s, j, k, m] is the azimuth of m where k is the meridian, 0 to
            pi.
        other: (S, n, n, n), whether m is neither j nor k, and k has a meridian.
        aside: (S, n, n, n), whether moreover m has an azimuth.
    """

    cosine: Array
    theta: Array
    phi: Array
    other: NDArray[np.bool_]
    aside: NDArray[np.bool_]

    @classmethod
    def between(cls, directions: Array) -> Angles:
        """Return the angles between unit vectors (S, n, 3)."""
        n = directions.shape[1]
        cosine = np.clip(directions @ directions.transpose(0, 2, 1), -1, 1)
        across = directions[:, None] - cosine[..., None] * directions[:, :, None]  # (S, n, n, 3)
        length = np.linalg.norm(across, axis=-1)
        has_azimuth = length >= _COLLINEAR  # (S, n, n)
        across /= np.where(has_azimuth, length, 1)[..., None]
        phi = np.arccos(np.clip(across @ across.transpose(0, 1, 3, 2), -1, 1))
        same = np.eye(n, dtype=bool)
        apart = ~(same[:, :, None] | same[:, None, :] | same[None, :, :])  # (n, n, n)
        other = apart & has_azimuth[..., None]
        return cls(
            cosine=cosine,
            theta=np.arccos(cosine),
            phi=phi,
            other=other,
            aside=other & has_azimuth[:, :, None, :],
        )


def order_parameter(motif: str, parameters: Parameters | None, angles: Angles) -> Array:
    """Return one order parameter of S sites.

    Args:
        motif: pymatgen's name of the motif.
        parameters: its constants, from `LocalStructOrderParams.get_parameters`.
        angles: angles between the neighbours.

    Returns:
        (S,), 0 where the parameter is not defined.

    Raises:
        ValueError: if no motif has this name.
    """
    n = angles.theta.shape[1]
    if motif == "sgl_bd":
        return np.ones(len(angles.theta))  # a single neighbour
    if motif in {"q2", "q4", "q6"}:
        return _bond_orientation(int(motif[1]), angles)
    if n < 2:
        return np.zeros(len(angles.theta))
    p = parameters or {}
    if motif == "bcc":
        return _body_centred(p, angles)
    pairs = ~np.eye(n, dtype=bool)
    if motif == "bent":
        scores = _bell(angles.theta, p["IGW_TA"], p["TA"])
        return np.sum(scores, axis=(1, 2), where=pairs) / pairs.sum()
    total, count = _terms(motif, p, angles)
    scores = np.divide(total, count, out=np.zeros_like(total), where=count > _COLLINEAR)
    return np.where(pairs, scores, -np.inf).max(axis=(1, 2))


def _terms(motif: str, p: Parameters, angles: Angles) -> tuple[Array, Array]:
    """Return sum and number of the terms of each pair (j, k), both (S, n, n)."""
    theta = angles.theta
    every = np.ones_like(theta)
    # Functions of theta alone are computed for (j, k) and reused for (j, m).
    if motif in {"tri_plan_max", "tet_max"}:
        polar, counts = _bell(theta, p["IGW_TA"], p["TA"]), every
    elif motif in _IN_PLANE:
        polar, counts = _bell(theta, p["IGW_EP"], 0.5), every
    elif motif == "pent_plan_max":
        polar = _bell(theta, p["IGW_TA"], np.where(theta <= p["TA"] * np.pi, 0.4, 0.8))
        counts = every
    elif motif in _WITH_SOUTH_POLE:
        polar = _bell(theta, p["IGW_EP"], 0.5) if motif != "hex_plan_max" else _bell(
            np.pi * np.abs(theta / np.pi - 0.5), p["IGW_TA"], p["TA"]
        )  # fmt: skip
        counts = (theta < p["min_SPP"]).astype(float)
    elif motif == "cuboct_max":
        return _cuboctahedral(p, angles)
    else:
        raise ValueError(f"no order parameter {motif!r}")
    azimuthal = np.cos(p.get("fac_AA", 1) * angles.phi) ** p.get("exp_cos_AA", 2)
    near = angles.aside & (counts[:, :, :, None] * counts[:, :, None, :] > 0)
    if motif == "see_saw_rect":
        near &= angles.phi < 0.75 * np.pi
    total = polar * counts + np.sum(azimuthal * polar[:, :, None, :], axis=-1, where=near)
    count = counts + near.sum(axis=-1)
    if motif in _WITH_SOUTH_POLE:
        south = angles.other & (theta >= p["min_SPP"])[:, :, None, :]
        total += np.where(south, _bell(theta, p["IGW_SPP"], 1)[:, :, None, :], 0).sum(axis=-1)
        count += south.sum(axis=-1)
    return total, count


def _cuboctahedral(p: Parameters, angles: Angles) -> tuple[Array, Array]:
    low, high = p[4], p[2]  # bounds of the four neighbours around the equator
    theta, phi = angles.theta, angles.phi
    polar = np.where(theta >= p["min_SPP"], p["w_SPP"], 0.0)
    equator = (theta > low) & (theta < high)
    tilted = np.exp(-0.5 * (0.0556 * (np.cos(phi - 0.5 * np.pi) - 0.81649658)) ** 2)
    total = polar * _bell(theta, p["IGW_SPP"], 1)
    count = polar.copy()
    for there, bell, azimuthal in (
        (equator, _bell(theta, p[5], 0.5), np.cos(phi) ** 2),
        (theta < low, _bell(theta, p[6], 1 / 3), tilted),
        ((theta > high) & (theta < p["min_SPP"]), _bell(theta, p[6], 2 / 3), tilted),
    ):
        where = angles.aside & equator[:, :, :, None] & there[:, :, None, :]
        total += np.sum(bell[:, :, None, :] * azimuthal, axis=-1, where=where)
        count += where.sum(axis=-1)
    return total, count


def _body_centred(p: Parameters, angles: Angles) -> Array:
    """Return the parameter of a body-centred cube: unordered pairs j < k, one norm for all."""
    theta = angles.theta
    n = theta.shape[1]
    if n < 4:
        return np.zeros(len(theta))
    first = np.triu(np.ones((n, n), dtype=bool), 1)
    pole = theta >= p["min_SPP"]
    total = np.sum(p["w_SPP"] * _bell(theta, p["IGW_SPP"], 1), axis=(1, 2), where=pole & first)
    x = (theta - np.pi / 2) / np.arcsin(1 / 3)
    wave = (x * np.exp(0.5 - 0.5 * x * x))[:, :, None, :] * np.cos(3 * angles.phi)
    side = np.where(theta > np.pi / 2, 1.0, -1.0)[..., None]
    where = angles.aside & (~pole & first)[..., None]
    total += np.sum(side * wave, axis=(1, 2, 3), where=where)
    return total / (0.5 * n * (6 + (n - 2) * (n - 3)))


def _bond_orientation(degree: int, angles: Angles) -> Array:
    """Return q_l (Steinhardt, Nelson & Ronchetti 1983, Phys. Rev. B 28, 784).

    q_l^2 = 4 pi / (2 l + 1) sum_m |mean_j Y_lm(j)|^2 = mean_jk P_l(cos theta_jk), by the addition
    theorem of spherical harmonics.
    """
    return np.sqrt(np.maximum(eval_legendre(degree, angles.cosine).mean(axis=(1, 2)), 0))


def _bell(theta: Array, sharpness: float, centre: float | Array) -> Array:
    return np.exp(-0.5 * (sharpness * (theta / np.pi - centre)) ** 2)
