"""The paper's three chat benchmarks (Table 4): AlpacaEval-2, MT-Bench and Arena-Hard.

Each has its own module. They share one way of asking a judge (`rlhflow_utils.endpoint`, or for AlpacaEval-2 the
`alpaca_eval` package); questions and judge prompts come from local files or packages, none are kept here.
"""
