"""The embedded model answers where torchvision is not installed (transformers then has no tensor
image processors).
"""

import subprocess
import sys

CODE = """
import importlib.util, sys
real = importlib.util.find_spec
hidden = lambda name: name.split(".")[0] == "torchvision"
importlib.util.find_spec = lambda name, *a: None if hidden(name) else real(name, *a)
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import numpy as np
from reasonseg import Query, Segmenter
query = Query(np.zeros((40, 50, 3), np.uint8), "the cat")
answer = Segmenter.from_pretrained(device="cpu")(query, force_seg=True)
assert answer.masks.shape[1:] == (40, 50)
assert "torchvision" not in sys.modules
print("answered")
"""


def test_no_torchvision_is_needed():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.stdout.strip() == "answered", done.stderr[-800:]
