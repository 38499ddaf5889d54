"""Length-adjusted win rate of one DPO iteration with each loss, by β, on a development seed.

This is how the β of claim o was chosen.

No test seed of the claims may serve here. The stages go to `runs/claims_beta`; the table goes to
`results/claims_beta.json`; nothing is written back to `claims/designs.yaml`. ::

    python benchmarks/claims_beta.py [--seed 1]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rlhflow_utils.claims.designs import Variant, load_designs, seed_profile
from rlhflow_utils.claims.pipeline import measure, prepare
from rlhflow_utils.guide.run import Run, locked, quiet_libraries
from rlhflow_utils.guide.stage import PROJECT, write_json

CANDIDATES = {
    "sigmoid": [0.03, 0.1, 0.3, 1.0],
    "ipo": [0.03, 0.1, 0.3, 1.0],
    "hinge": [0.003, 0.01, 0.03, 0.1, 0.3],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    seed_number = parser.parse_args().seed
    quiet_libraries()
    designs, folder = load_designs(), PROJECT / "runs" / "claims_beta"
    table: dict[str, dict[str, Any]] = {}
    with locked(folder):
        run = Run("11_ablations", seed_profile(designs, "tiny", {}, seed_number), folder, by_key=True)
        seed = prepare(run, designs.settings)
        for loss, betas in CANDIDATES.items():
            for beta in betas:
                overrides = {"dpo.trainer.loss_type": [loss], "dpo.trainer.beta": beta}
                measures = measure(seed, Variant(what=f"{loss}, β = {beta:g}", overrides=overrides))
                rate = measures["length_adjusted_win_rate@1"]
                estimate = {"value": rate.value, "ci_low": rate.ci_low, "ci_high": rate.ci_high}
                table.setdefault(loss, {})[f"{beta:g}"] = estimate
                print(f"{loss}, β = {beta:g}: {rate.value:.3f} ({rate.ci_low:.3f} … {rate.ci_high:.3f})", flush=True)
    best = {loss: max(rates, key=lambda beta: rates[beta]["value"]) for loss, rates in table.items()}
    command = f"python benchmarks/claims_beta.py --seed {seed_number}"
    result = {"seed": seed_number, "length_adjusted_win_rate": table, "best": best, "command": command}
    write_json(PROJECT / "results" / "claims_beta.json", result)


if __name__ == "__main__":
    main()
