"""The velocity field: message passing over all ordered pairs of atoms in a cell.

With x_j - x_i the wrapped difference d of two atoms (fractional, each in [-1/2, 1/2)), G the metric
tensor of the cell, h_i the state of atom i and c the state of the crystal (cell, number of atoms,
time), one layer is

    e_ij = (sin 2 pi k d, cos 2 pi k d for k = 1..K, cosines of the angles of d L to a, b, c,
            log |d L|, density of the images of j around i)
    m_ij = silu(V silu(A n(h_i) + B n(h_j) + C c + D e_ij))
    h_i <- h_i + MLP(n(h_i), mean_j m_ij)

where n is a layer norm. This is the CSPNet of DiffCSP (Jiao et al. 2023, arXiv 2309.04475) with the
edge features of FlowMM (Miller et al. 2024, arXiv 2406.04713) and two more, distance and density,
which bring in lengths in Angstrom: in trials on MP-20 with made-up base crystals they lowered the
error of the coordinate velocity by 7%. The first edge layer is linear in its inputs, so A, B and C
are applied once per atom or crystal and only added on pairs. e_ij is split into a part that stays
the same and a part that changes sign when i and j are exchanged, so D acts once for both
directions. torch-geometric's MessagePassing handles neither unordered pairs nor batches of pairs
that fit into the cache; the tests compare the layer with one built on it.

The inputs are x_j - x_i, G and means or sums over atoms. So the field is unchanged by translation
and rotation of the crystal and by whole periods in any coordinate, and permutes with the atoms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from torch.utils.checkpoint import checkpoint

from rfm.batch import AtomPairs, CrystalBatch, atom_pairs
from rfm.config import NetworkConfig
from rfm.errors import RefinerError
from rfm.torus import wrap_difference

_TIME_FREQUENCIES = 8
_CELL_FEATURES = 6 + 3 + 3 + 2
_DIRECTION = 3 + 1  # cosines of angles and the log distance
_CACHED = 2**20  # bytes of a tensor that stays in the cache of a core
_RECOMPUTED = 2**25  # bytes of a tensor that the backward pass computes again at a time
_SHELLS, _FIRST_SHELL, _SHELL_STEP = 12, 1.0, 0.5  # radii of the image density, Angstrom


class VelocityNetwork(nn.Module):
    """u(state, t): velocities of the fractional coordinates and of the standardised cell vector.

    Attributes:
        config: size of the network.
        recompute: True computes messages again in the backward pass instead of keeping them. This
            costs a third more work, and memory then holds only the states of atoms and the features
            of pairs.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        width = config.width
        self.embed_element = nn.Embedding(config.max_atomic_number + 1, width)
        self.embed_crystal = nn.Sequential(
            nn.Linear(_CELL_FEATURES + 1 + 2 * _TIME_FREQUENCIES, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.layers = nn.ModuleList(
            _Layer(width, config.num_frequencies) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.coord_head = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3, bias=False)
        )
        self.cell_head = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 6))

    def compile_messages(self) -> None:
        """Let `torch.compile` fuse the work on pairs, with one graph for all numbers of pairs."""
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            compiled = torch.compile(layer.messages, dynamic=True)
            layer.messages = compiled  # type: ignore[method-assign]  # of this instance alone

    def forward(self, state: CrystalBatch, metric: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return velocities at a state, in float32 also under autocast.

        Args:
            state: B crystals with N atoms.
            metric: (B, 3, 3) metric tensors of the cells of the state, Angstrom^2.
            t: (B,) times in [0, 1].

        Returns:
            (N, 3) coordinate velocity, of mean zero over the atoms of each crystal, in periods per
            unit of time; (B, 6) velocity of the standardised cell vector.

        Raises:
            RefinerError: if an element is heavier than the network knows.
        """
        if int(state.atomic_numbers.max()) > self.config.max_atomic_number:
            raise RefinerError(
                f"atomic number {int(state.atomic_numbers.max())} is above the network's "
                f"max_atomic_number {self.config.max_atomic_number}; train one with a larger limit"
            )
        pairs = atom_pairs(state.num_atoms)
        geometry = pair_features(state.frac_coords, metric, pairs, self.config.num_frequencies)
        num_atoms = state.num_atoms.unsqueeze(-1).to(t.dtype)  # (B, 1)
        features = crystal_features(state.lattice, metric, num_atoms, t)
        crystal = self.embed_crystal(features)  # (B, W)
        device = state.frac_coords.device.type
        if torch.is_autocast_enabled(device):
            # Once here instead of once in each layer; the phases themselves need float32.
            geometry = geometry.to(torch.get_autocast_dtype(device))

        h = self.embed_element(state.atomic_numbers)  # (N, W)
        # Each atom has a message from every other atom of its crystal; a lone one has none.
        inverse_degree = (num_atoms - 1).clamp(min=1).reciprocal()  # (B, 1)
        inverse_degree = inverse_degree.index_select(0, state.batch)  # (N, 1)
        for layer in self.layers:
            h = layer(h, crystal, geometry, state.batch, pairs, inverse_degree, self.recompute)

        h = self.norm(h)
        coord_velocity = self.coord_head(h).float()  # (N, 3)
        total = crystal_sums(h.float(), state.batch, state.num_crystals)  # (B, W)
        pooled = torch.cat([total / num_atoms, total, crystal.float()], dim=-1)  # (B, 3 W)
        cell_velocity = self.cell_head(pooled).float()  # (B, 6)
        return remove_mean(coord_velocity, state.batch, num_atoms), cell_velocity


class _Layer(nn.Module):
    """One round of messages between atoms of width W; see the module docstring for the formula."""

    def __init__(self, width: int, num_frequencies: int) -> None:
        super().__init__()
        self.num_waves = 3 * num_frequencies
        self.norm = nn.LayerNorm(width)
        self.from_source = nn.Linear(width, width)
        self.from_target = nn.Linear(width, width, bias=False)
        self.from_crystal = nn.Linear(width, width, bias=False)
        # Columns: sines, cosines, direction, density.
        self.from_edge = nn.Linear(2 * self.num_waves + _DIRECTION + _SHELLS, width, bias=False)
        self.message = nn.Linear(width, width)
        self.update = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(
        self,
        h: Tensor,
        crystal: Tensor,
        geometry: PairFeatures,
        batch: Tensor,
        pairs: AtomPairs,
        inverse_degree: Tensor,
        recompute: bool,
    ) -> Tensor:
        """Return the next states of atoms (N, W).

        Args:
            h: (N, W) states of atoms.
            crystal: (B, W) states of crystals.
            geometry: features of the P pairs.
            batch: (N,) index of the crystal of each atom.
            pairs: atoms of the P pairs.
            inverse_degree: (N, 1) one over the number of messages to each atom.
            recompute: see `VelocityNetwork`.
        """
        x = self.norm(h)  # (N, W)
        source = self.from_source(x) + self.from_crystal(crystal).index_select(0, batch)  # (N, W)
        target = self.from_target(x)  # (N, W)
        weight, waves = self.from_edge.weight, self.num_waves
        even_weight = weight[:, waves:]
        odd_weight = torch.cat([weight[:, :waves], weight[:, 2 * waves :][:, :_DIRECTION]], dim=1)
        if torch.is_autocast_enabled(h.device.type):
            even_weight, odd_weight = even_weight.to(source.dtype), odd_weight.to(source.dtype)

        num_pairs = max(1, pairs.first.shape[0])  # one turn without pairs, for the gradients
        # Without a backward pass the (P, W) tensors can be overwritten, and on CPUs, where their
        # traffic costs as much as the products, they come in parts that stay in the cache.
        discard = not torch.is_grad_enabled()
        part_bytes = num_pairs * h.shape[1] * source.itemsize
        if discard and h.device.type == "cpu":
            part_bytes = _CACHED
        elif recompute:
            part_bytes = _RECOMPUTED
        size = max(1, part_bytes // (h.shape[1] * source.itemsize))
        total = torch.zeros_like(source)  # (N, W), sums of messages
        for start in range(0, num_pairs, size):
            part = slice(start, start + size)
            inputs = (
                *(source, target, even_weight, odd_weight, geometry.even[part], geometry.odd[part]),
                *(pairs.first[part], pairs.second[part]),
            )
            if recompute and not discard:
                messages = checkpoint(
                    self.messages, *inputs, use_reentrant=False, preserve_rng_state=False
                )
            else:
                messages = self.messages(*inputs)
            for here, message in zip(inputs[-2:], messages, strict=True):
                total.index_add_(0, here, message)
        mean = total * inverse_degree  # (N, W)
        return h + self.update(torch.cat([x, mean.to(x.dtype)], dim=-1))

    def messages(
        self,
        source: Tensor,
        target: Tensor,
        even_weight: Tensor,
        odd_weight: Tensor,
        even: Tensor,
        odd: Tensor,
        first: Tensor,
        second: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the messages of P pairs, to the first atoms and to the second, each (P, W).

        Args:
            source: (N, W) part of the first edge layer from the receiving atoms.
            target: (N, W) part from the sending atoms.
            even_weight: (W, 3 K + 16) columns of the even features.
            odd_weight: (W, 3 K + 4) columns of the odd features.
            even: (P, 3 K + 16) even features.
            odd: (P, 3 K + 4) odd features.
            first: (P,) first atom of each pair.
            second: (P,) second atom of each pair.
        """
        discard = not torch.is_grad_enabled()
        even, odd = linear(even, even_weight), linear(odd, odd_weight)  # (P, W)
        messages = []
        for pair, here, there in ((even + odd, first, second), (even - odd, second, first)):
            pair += source.index_select(0, here)
            pair += target.index_select(0, there)
            messages.append(silu(self.message(silu(pair, inplace=discard)), inplace=discard))
        return messages[0], messages[1]


class PairFeatures(NamedTuple):
    """Features of P unordered pairs {i, j}, split by their symmetry under exchange of i and j.

    Attributes:
        even: (P, 3 K + 16) cosines, direction and density; unchanged by the exchange.
        odd: (P, 3 K + 4) sines and direction; the exchange changes their sign.
    """

    even: Tensor
    odd: Tensor

    def to(self, dtype: torch.dtype) -> PairFeatures:
        """Return the features in another precision.

        Args:
            dtype: type of both tensors.
        """
        return PairFeatures(self.even.to(dtype), self.odd.to(dtype))


def pair_features(
    coords: Tensor, metric: Tensor, pairs: AtomPairs, num_frequencies: int
) -> PairFeatures:
    """Return the features of pairs of atoms.

    Args:
        coords: (N, 3) fractional coordinates.
        metric: (B, 3, 3) metric tensors of the cells, Angstrom^2.
        pairs: atoms of the P pairs.
        num_frequencies: number K of sines and cosines per coordinate.
    """
    first, second = coords.index_select(0, pairs.first), coords.index_select(0, pairs.second)
    d = wrap_difference(second - first)  # (P, 3)
    k = 2 * math.pi * torch.arange(1, num_frequencies + 1, device=d.device, dtype=d.dtype)
    phase = (d.unsqueeze(-1) * k).flatten(1)  # (P, 3 K)
    metric = metric.index_select(0, pairs.crystal)  # (P, 3, 3)
    # Not simply odd and even: a coordinate half a period away is -1/2 from either side.
    there, back = _direction(d, metric), _direction(wrap_difference(first - second), metric)
    return PairFeatures(
        even=torch.cat([phase.cos(), (there + back) / 2, image_density(d, metric)], dim=-1),
        odd=torch.cat([phase.sin(), (there - back) / 2], dim=-1),
    )


def _direction(d: Tensor, metric: Tensor) -> Tensor:
    """Return cosines of the angles of d L to a, b and c, and log |d L|: (P, 4).

    Where two atoms coincide the direction has no meaning; its cosines are then 0.
    """
    # Scalar products of the Cartesian difference d L with a, b, c: (P, 3), Angstrom^2.
    projected = (d.unsqueeze(-1) * metric).sum(1)
    distance = _root((projected * d).sum(-1, keepdim=True))  # (P, 1), Angstrom
    lengths = metric.diagonal(dim1=-2, dim2=-1).sqrt()  # (P, 3)
    return torch.cat([projected / (distance * lengths), distance.log()], dim=-1)


def image_density(d: Tensor, metric: Tensor) -> Tensor:
    """Return the smoothed number of images of an atom at each distance from another: (E, 12).

    The images are the eight with each coordinate d or d -+ 1. With distances r_s and weights w_s,

        density_m = sum_s w_s exp(-(r_s - R_m)^2 / (2 sigma^2)),  R_m = 1, 1.5, .., 6.5 Angstrom

    and sigma = 0.5 Angstrom. w_s has a factor sin^2(pi d) for each coordinate moved by a period: 1
    at half a period, where the two choices are equally near, and 0 at d = 0, where the sign of the
    move flips. So the density is smooth and periodic in every coordinate.

    Args:
        d: (E, 3) wrapped differences of pairs of atoms, in periods.
        metric: (E, 3, 3) metric tensors of their cells, Angstrom^2.
    """
    moved = _corners(d.device, d.dtype)  # (8, 3), 1 for a coordinate moved by a period
    images = d.unsqueeze(1) - moved * torch.where(d >= 0, 1.0, -1.0).unsqueeze(1)  # (E, 8, 3)
    distance = _root(((images @ metric) * images).sum(-1))  # (E, 8)
    fade = (math.pi * d).sin().square().unsqueeze(1)  # (E, 1, 3)
    weight = torch.where(moved > 0, fade, 1.0).prod(-1, keepdim=True)  # (E, 8, 1)
    radii = _FIRST_SHELL + _SHELL_STEP * torch.arange(_SHELLS, device=d.device, dtype=d.dtype)
    off = (distance.unsqueeze(-1) - radii) / _SHELL_STEP  # (E, 8, 12)
    # Without the clamp most exponentials underflow, which costs ten times the rest.
    return (weight * (-0.5 * off.square()).clamp(min=-20).exp()).sum(1)


def _root(square: Tensor) -> Tensor:
    """Return the root of squared lengths, at least 0.001 Angstrom."""
    return square.clamp(min=1e-6).sqrt()


def _corners(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the eight corners of the unit cube, (8, 3)."""
    axis = torch.arange(2, device=device, dtype=dtype)
    return torch.cartesian_prod(axis, axis, axis)


def crystal_features(lattice: Tensor, metric: Tensor, num_atoms: Tensor, t: Tensor) -> Tensor:
    """Return the features of crystals: cell, number of atoms and time, (B, 31).

    The cell enters as its standardised vector and once more as log lengths (Angstrom), cosines of
    its angles and log volume per atom, which state its scale directly.

    Args:
        lattice: (B, 6) standardised cell vectors.
        metric: (B, 3, 3) metric tensors, Angstrom^2.
        num_atoms: (B, 1) numbers of atoms.
        t: (B,) times in [0, 1].
    """
    lengths = metric.diagonal(dim1=-2, dim2=-1).sqrt()  # (B, 3)
    rows, cols = [0, 0, 1], [1, 2, 2]
    cosines = metric[:, rows, cols] / (lengths[:, rows] * lengths[:, cols])  # (B, 3)
    volume = torch.linalg.det(metric).clamp(min=1e-12).sqrt().unsqueeze(-1)  # (B, 1)
    phase = (  # (B, 8)
        t.unsqueeze(-1)
        * math.pi
        * torch.arange(1, _TIME_FREQUENCIES + 1, device=t.device, dtype=t.dtype)
    )
    return torch.cat(
        [
            lattice,
            lengths.log(),
            cosines,
            (volume / num_atoms).log(),
            num_atoms.log(),
            t.unsqueeze(-1),
            phase.sin(),
            phase.cos(),
        ],
        dim=-1,
    )


def remove_mean(velocity: Tensor, batch: Tensor, num_atoms: Tensor) -> Tensor:
    """Return velocities (N, 3) less their mean over the atoms of each crystal.

    Args:
        velocity: (N, 3).
        batch: (N,) index of the crystal of each atom.
        num_atoms: (B, 1) numbers of atoms.
    """
    mean = crystal_sums(velocity, batch, num_atoms.shape[0]) / num_atoms  # (B, 3)
    return velocity - mean.index_select(0, batch)


def crystal_sums(values: Tensor, batch: Tensor, num_crystals: int) -> Tensor:
    """Return the sums (B, F) of values (N, F) over the atoms of each crystal.

    This is `torch_geometric.utils.scatter`, whose import takes 0.6 to 1.7 s of CPU time.

    Args:
        values: (N, F).
        batch: (N,) index of the crystal of each atom.
        num_crystals: number of crystals B.
    """
    index = batch.unsqueeze(-1).expand_as(values)
    return values.new_zeros(num_crystals, values.shape[1]).scatter_add_(0, index, values)
