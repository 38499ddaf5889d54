"""Every figure of the guide, drawn from saved results: one function per figure, each returns the Figure.

Nothing is computed here beyond what a title says. A title states what the data show, and the opposite where they show
that. The look, and the colour of each judge and policy, are in `style.py`.
"""

from rlhflow_utils.guide.figures.judges import *  # noqa: F403
from rlhflow_utils.guide.figures.policies import *  # noqa: F403
