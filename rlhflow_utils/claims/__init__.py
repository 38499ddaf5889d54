"""The paper's claims, put to the test in the simulated world over several seeds: `python -m rlhflow_utils claims`.

`arms` and `designs` say what is compared, `seed_run` and `arm_runs` run it stage by stage, `measures` reads the results
back, `effects` turns them into intervals and verdicts, `records` writes `results/claims/*.json`, `run` drives it all.
"""
