"""Muon (Jordan et al. 2024) for the tiny base model, which has to learn algorithms in some thousand steps.

With AdamW a model of under one million parameters does not learn to check a sum within the steps that two CPU cores
can afford; with Muon it begins to. `torch.optim.Muon` iterates in bfloat16, which a CPU without bfloat16 arithmetic
emulates: a step of 0.1 s takes 10 s. Here the iteration is float32 and runs on all matrices of one shape together.
Every stage of the paper is trained with AdamW, as there.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration, as in torch.optim.Muon


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring all singular values near 1 (between about 0.7 and 1.2).

    Args:
        matrices: shape (n, rows, columns).
    """
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the hidden matrices and AdamW for embeddings, norms and heads, as one optimiser with one schedule."""

    def __init__(
        self, model: torch.nn.Module, muon_lr: float, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        """Split the parameters of a model.

        Args:
            model: embeddings and heads are told by the names `embed`, `lm_head` and `score`.
            muon_lr: learning rate of the hidden matrices; an update has about this spectral norm.
            lr: AdamW's learning rate for the other parameters.
            betas: AdamW's decay rates.
            weight_decay: decoupled; of the hidden matrices and the embeddings, not of the norms.
        """
        hidden: list[Tensor] = []
        tables: list[Tensor] = []
        vectors: list[Tensor] = []
        for name, parameter in model.named_parameters():
            outer = any(part in name for part in ("embed", "lm_head", "score"))
            (vectors if parameter.ndim < 2 else tables if outer else hidden).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": hidden, "lr": muon_lr, "weight_decay": weight_decay, "muon": True},
            {"params": tables, "lr": lr, "weight_decay": weight_decay, "muon": False},
            {"params": vectors, "lr": lr, "weight_decay": 0.0, "muon": False},
        ]
        super().__init__(groups, {"betas": betas, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient. `closure` is not supported."""
        if closure is not None:
            raise ValueError("Muon: a closure is not supported")
        for group in self.param_groups:
            with_grad = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in with_grad:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._muon(with_grad, group["lr"])
            else:
                self._adam(with_grad, group)

    def _muon(self, parameters: list[Tensor], lr: float) -> None:
        same_shape = defaultdict(list)
        for parameter in parameters:
            same_shape[tuple(parameter.shape)].append(parameter)
        for (rows, columns), group in same_shape.items():
            updates = torch.stack([self._nesterov(parameter) for parameter in group])
            scale = lr * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(group, orthogonalise(updates), strict=True):
                parameter.add_(update, alpha=-scale)

    def _nesterov(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(state["momentum"], MOMENTUM)  # type: ignore[union-attr]

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
            state["mean"].lerp_(parameter.grad, 1 - beta1)
            state["square"].lerp_(parameter.grad**2, 1 - beta2)  # type: ignore[operator]
            size = group["lr"] / (1 - beta1 ** state["step"])
            root = (state["square"] / (1 - beta2 ** state["step"])).sqrt() + group["eps"]
            parameter.addcdiv_(state["mean"], root, value=-size)
