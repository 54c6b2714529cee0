"""Trains the embedded model's tokenizer on the sentences of drawn scenes.

make_tokenizer.py FOLDER [--size N]
"""

import argparse

from reasonseg.datasets.scenes import Config
from reasonseg.datasets.synthetic.knowledge import Knowledge
from recipes.embedded.tokenizer import make_tokenizer


def sentences(count: int = 6000):
    """Questions and answers of training, and all names and wordings."""
    data = Config("train", count, size=48, per_scene=3).build()
    for i in range(len(data)):
        sample = data[i]
        yield sample.query.text
        yield sample.truth.text.replace("<SEG>", "").replace("<REJ>", "")
    knowledge = Knowledge.load()
    for name, thing in knowledge.things.items():
        for term in (name, *thing.synonyms):
            yield from [f"The {term}", f"the {term}."] * (20 if term == name else 8)
    for prop in knowledge.properties.values():
        for words in (prop.because, *prop.wordings, *prop.more):
            yield from [f"Show me {words}."] * 3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=2400)
    options = parser.parse_args()
    tokenizer = make_tokenizer(sentences(), options.size, options.folder)
    names = Knowledge.load().things
    whole = sum(
        len(tokenizer.encode(name, add_special_tokens=False)) == len(name.split()) for name in names
    )
    print(
        f"{len(tokenizer)} tokens; {whole} of {len(names)} names are whole words; wrote "
        f"{options.folder}"
    )
