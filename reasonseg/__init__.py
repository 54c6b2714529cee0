"""reasonseg turns words, examples, or both into image masks.

    from reasonseg import Query, Segmenter

    segmenter = Segmenter.from_pretrained()
    answer = segmenter(Query.open("photo.jpg", "the cup one could drink from"))
    answer.save("out/answer")

The data classes load at once; what needs torch (`Segmenter`, `Session`, `Bank`) loads when it is
first touched.
"""

from reasonseg.errors import InputError
from reasonseg.moved import install as _install
from reasonseg.structures.answer import Answer
from reasonseg.structures.query import Query, Reference
from reasonseg.structures.sample import Sample

__version__ = "0.2.0"
__all__ = [
    "Answer",
    "Bank",
    "InputError",
    "Query",
    "Reference",
    "Sample",
    "Segmenter",
    "Session",
    "__version__",
]
_LAZY = {
    "Bank": "reasonseg.serving.reference_bank",
    "Segmenter": "reasonseg.segmenters.base",
    "Session": "reasonseg.serving.session",
}
_install()


def __getattr__(name: str):
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'reasonseg' has no attribute {name!r}")
