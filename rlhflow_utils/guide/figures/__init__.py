"""Every figure of the guide, drawn from saved results: one function per figure, each returns the Figure.

Nothing is computed here beyond what a title says. `caption` goes below the figure, small: which world and model the
numbers come from. The look, and the colour of each judge and policy, are in `style.py`.
"""

from rlhflow_utils.guide.figures.judges import *  # noqa: F403
from rlhflow_utils.guide.figures.policies import *  # noqa: F403
