"""Before a run: what each stage needs in memory, steps and time, without loading a weight.

The steps of a stage are run on tensors without memory (torch's fake tensors) through the code that trains, on a model
of a few layers of the real width; what one more layer adds is measured there too, and the rest is counted.
"""

from rlhf_kit.planning.plan import plan
from rlhf_kit.planning.results import Plan, StagePlan
from rlhf_kit.planning.wishes import Wishes

__all__ = ["Plan", "StagePlan", "Wishes", "plan"]
