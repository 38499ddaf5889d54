"""Muon against torch: its own Muon for the hidden matrices (which iterates in bfloat16), AdamW for the rest."""

from __future__ import annotations

import torch

from rlhflow_utils.training.pretraining import Muon, orthogonalise


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.ModuleDict({
        "embed": torch.nn.Embedding(11, 8),
        "wide": torch.nn.Linear(8, 16, bias=False),
        "square": torch.nn.Linear(8, 8, bias=False),
        "norm": torch.nn.RMSNorm(8),
    })  # fmt: skip


def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
    """All ids with changing targets: the gradients have full rank, or rounding would decide their null space."""
    hidden = model["norm"](model["square"](model["embed"](torch.arange(11))))  # type: ignore[index]
    targets = torch.randn(11, 16, generator=torch.Generator().manual_seed(step))
    return ((model["wide"](hidden) - targets) ** 2).mean()  # type: ignore[index]


def train(model: torch.nn.Module, optimisers: list[torch.optim.Optimizer], steps: int) -> None:
    for step in range(steps):
        loss(model, step).backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()


def test_singular_values_come_near_one_and_directions_stay() -> None:
    matrices = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices[0], full_matrices=False)
    rotated = u.T @ result[0] @ v.T  # diagonal where the singular vectors are the same
    torch.testing.assert_close(rotated, torch.diag(rotated.diag()), atol=1e-4, rtol=0)


def test_the_first_step_equals_torch() -> None:
    start, ours, theirs = network(), network(), network()
    hidden = [theirs["wide"].weight, theirs["square"].weight]  # type: ignore[index]
    tables, vectors = [theirs["embed"].weight], [theirs["norm"].weight]  # type: ignore[index]
    betas = (0.9, 0.98)
    train(ours, [Muon(ours, muon_lr=0.02, lr=0.01, betas=betas, weight_decay=0.1)], 1)
    train(theirs, [
        torch.optim.Muon(hidden, lr=0.02, momentum=0.95, weight_decay=0.1),
        torch.optim.AdamW(tables, lr=0.01, betas=betas, weight_decay=0.1),
        torch.optim.AdamW(vectors, lr=0.01, betas=betas, weight_decay=0.0),
    ], 1)  # fmt: skip
    for (name, old), mine, reference in zip(
        start.named_parameters(), ours.parameters(), theirs.parameters(), strict=True
    ):
        tolerance = 2e-3 if mine.ndim == 2 and "embed" not in name else 1e-6  # torch's Muon iterates in bfloat16
        torch.testing.assert_close(mine - old, reference - old, atol=tolerance, rtol=0)
        assert (mine - old).abs().max() > 1e-3, name


def test_a_resumed_run_goes_on_as_before() -> None:
    settings = {"muon_lr": 0.02, "lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.1}
    whole, halves = network(), network()
    train(whole, [Muon(whole, **settings)], 8)  # type: ignore[arg-type]
    first = Muon(halves, **settings)  # type: ignore[arg-type]
    train(halves, [first], 4)
    second = Muon(halves, **settings)  # type: ignore[arg-type]
    second.load_state_dict(first.state_dict())
    for step in range(4, 8):
        loss(halves, step).backward()
        second.step()
        second.zero_grad()
    for mine, reference in zip(halves.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, reference)
