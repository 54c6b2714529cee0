"""reasonseg turns words, examples, or both into image masks.

The nouns load at once; `Segmenter`, which needs torch, loads when it is first touched.
"""

from reasonseg.errors import InputError
from reasonseg.structures.query import Answer, Query, Reference, Sample

__version__ = "0.1.0"
__all__ = ["Answer", "InputError", "Query", "Reference", "Sample", "Segmenter", "__version__"]


def __getattr__(name: str):
    if name == "Segmenter":
        from reasonseg.segmenters.embedding import Segmenter

        return Segmenter
    raise AttributeError(f"module 'reasonseg' has no attribute {name!r}")
