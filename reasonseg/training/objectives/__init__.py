"""What the stages of training minimise. Each objective wraps a segmenter and makes its own batches.

`dense` teaches the vision tower to name patches, `codes` the decoder to draw what a code points at, `language` the whole
corridor, `properties` the same with what the words mean spelled out, `references` the prompts that come from examples,
`painting` SegGPT. Where released weights are fine-tuned, `language` and `references` are enough.
"""

from reasonseg.training.objectives.base import Objective
from reasonseg.training.objectives.codes import Codes
from reasonseg.training.objectives.language import Language
from reasonseg.training.objectives.painting import Painting
from reasonseg.training.objectives.patches import Dense
from reasonseg.training.objectives.properties import Properties
from reasonseg.training.objectives.references import References

OBJECTIVES: dict[str, type[Objective]] = {
    "dense": Dense,
    "codes": Codes,
    "language": Language,
    "properties": Properties,
    "references": References,
    "painting": Painting,
}

__all__ = ["OBJECTIVES", "Codes", "Dense", "Language", "Objective", "Painting", "Properties", "References"]
